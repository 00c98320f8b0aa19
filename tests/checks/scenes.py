"""Everything that a check may ask for, constructed: one scene is one deployment as it was found."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_llmdeploy.baseline import Earlier
from pytest_llmdeploy.checks import Expect, NotPassed, Registry, requirements
from pytest_llmdeploy.evidence import Evidence, Judgement
from pytest_llmdeploy.load import Outcome, Sample, Traffic, WorkloadTraffic
from pytest_llmdeploy.load.backlog import Service
from pytest_llmdeploy.load.claims import Budget
from pytest_llmdeploy.load.engines import Engines
from pytest_llmdeploy.load.floor import Floor
from pytest_llmdeploy.load.trial import at_rate
from pytest_llmdeploy.load.validity import Lateness
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.probes import Device, Devices, Host
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.probes.tenants import Tenant, Tenants
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.serving import Server, Stopped
from pytest_llmdeploy.spec import Spec, Workload
from tests.plan.deployments import made

GIB = 1024**3
H100 = "NVIDIA H100 80GB HBM3"
MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"
LIMITS = {"p50": "1s"}
REQUIRED: Mapping[str, Any] = {
    "engine": {"version": ">=0.30,<0.40"},
    "require": {
        "devices": 8,
        "memory": {"max_utilization": "85%", "min_headroom": "12GiB"},
        "kv_cache": {"concurrent_sequences": 128, "tokens_per_sequence": 8192},
        "balance": {"memory": "5%", "layers": "5%"},
        "interconnect": "nvlink",
        "driver": ">=550",
        "cuda": ">=12.4",
        "persistence": True,
        "strategy": {"within": "10%"},
    },
}
STEADY: Mapping[str, Any] = {
    "name": "steady",
    "input_tokens": 1024,
    "output_tokens": 128,
    "rate": "8/s",
    "require": {
        **dict.fromkeys(("ttft", "tpot", "itl", "e2el", "stall"), LIMITS),
        "goodput": {"share": "90%", "ttft": "1s", "tpot": "100ms"},
        "errors": "1%",
        "keeps_up": True,
        "concurrent_sequences": 32,
        "preemptions": 2,
        "capacity": "12/s",
    },
}

# What is read of a sound H100 under load.
SOUND: Mapping[Field, float] = {
    Field.UTILIZATION: 0.97,
    Field.TEMPERATURE: 61,
    Field.POWER: 640,
    Field.SM_CLOCK: 1755,
    Field.CLOCKS_EVENT_REASONS: 4,
    Field.ECC_UNCORRECTED: 0,
    Field.ROWS_PENDING: 0,
    Field.ROWS_FAILED: 0,
    Field.RECOVERY_ACTION: 0,
    Field.PCIE_GENERATION: 5,
    Field.PCIE_MAX_GENERATION: 5,
    Field.PCIE_WIDTH: 16,
    Field.PCIE_MAX_WIDTH: 16,
    Field.NUMA_NODE: 0,
    Field.NVLINK_LANES: 18,
    Field.NVLINK_LANES_UP: 18,
    Field.FABRIC_STATE: 3,
    Field.FABRIC_STATUS: 0,
    Field.FABRIC_DEGRADED: 0,
    Field.COMPUTE_MODE: 0,
    Field.PERSISTENCE_MODE: 1,
    Field.MIG_MODE: 0,
}
OURS = range(4000, 4008)

SERVED = Service(share=1, low=0.99, high=1, completed=1, growth=0, uncertainty=0.01)


def gpus(
    used: Sequence[float | None] = (64,) * 8,
    kind: str = H100,
    stages: Sequence[int] | None = None,
    problem: str = "",
    fields: Mapping[int, Mapping[Field, float | None]] | None = None,
    tenants: Mapping[int, Tenants] | None = None,
) -> Devices:
    """GPUs of 80 GiB with so many GiB in use; None for one that could not be read. `fields` and
    `tenants` are what differs on some of them from a sound one.
    """

    def read(gib: float | None) -> Evidence:
        fault = "" if gib is not None else "lost: GPU is lost"
        return Evidence(None if gib is None else gib * GIB, "B", "NVML", 1.0, fault)

    def seen(index: int) -> Mapping[Field, Evidence]:
        values = {**SOUND, **(fields or {}).get(index, {})}
        unseen = "unsupported: NVML says not supported"
        return {
            name: Evidence(value, name.unit, "NVML", 1.0, "" if value is not None else unseen)
            for name, value in values.items()
        }

    stages = stages or [0] * len(used)
    devices = tuple(
        Device(
            f"GPU {index}",
            f"GPU-{index}",
            kind,
            total=read(80),
            used=read(gib),
            reserved=read(0),
            stage=stages[index],
            fields=seen(index),
            tenants=(tenants or {}).get(index, Tenants()),
        )
        for index, gib in enumerate(used)
    )
    return Devices(devices, "NVML", problem)


def serving(used: Sequence[float | None] = (64,) * 8, **differing: Any) -> Devices:
    """GPUs that the server's own processes are on, each with all that is in use."""
    own = {
        index: Tenants((Tenant(OURS[index], round(gib * GIB)),))
        for index, gib in enumerate(used)
        if gib is not None
    }
    return gpus(used, **{**differing, "tenants": {**own, **differing.get("tenants", {})}})


def idle(**differing: Any) -> Devices:
    """GPUs that nobody uses: what the driver itself takes."""
    return gpus((4 / 1024,) * 8, **differing)


def nvlinks(missing: Sequence[str] = ()) -> Mapping[str, Evidence]:
    """All 28 pairs of 8 GPUs, connected but for those that are missing."""
    pairs = [f"GPU {a} – GPU {b}" for a in range(8) for b in range(a + 1, 8)]
    return {pair: Evidence(float(pair not in missing), "", "NVML", 1.0) for pair in pairs}


def sample(ttft: float = 200, gaps: Sequence[float] = (20, 20, 20), due: float = 0) -> Sample:
    """A request that was answered after `ttft` ms and then token by token."""
    times = [due + (ttft + sum(gaps[:index])) / 1000 for index in range(len(gaps) + 1)]
    stamps = [(time, 1) for time in times]
    return Sample(due=due, sent=due, ended=times[-1], outcome=Outcome.OK, stamps=stamps)


def failed() -> Sample:
    """A request that came back with an error."""
    return Sample(due=0, sent=0, ended=1, outcome=Outcome.HTTP_ERROR, detail="HTTP 500")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is declared, and what is found. `spec` and `server` are changes to what is good,
    `earlier` is the scene to compare with: what is good, if none is given.
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    devices: Devices = field(default_factory=serving)
    present: Devices = field(default_factory=idle)
    under_load: Sequence[Devices] | None = None
    returned: Devices = field(default_factory=idle)
    driver: Driver = Driver("580.95.05", "13.0")
    pids: frozenset[int] = frozenset({3999, *OURS})
    xids: Xids = Xids(devices=[f"GPU {index}" for index in range(8)], seconds=90)
    nvlink: Mapping[str, Evidence] = field(default_factory=nvlinks)
    samples: Sequence[Sample] = (sample(),) * 200
    at_capacity: Sequence[Sample] = (sample(),) * 200
    interrupted: str = ""
    invalid: Sequence[str] = ()
    late: Lateness = field(default_factory=Lateness)
    floor: Floor | None = None
    service: Service | None = SERVED
    running_peak: float = 40
    preempted: float = 0
    engines: Engines = field(default_factory=Engines)
    left: Sequence[str] = ()
    earlier: Scene | None = None

    def declared(self) -> Spec:
        """The 70B deployment that requires everything, with the changes."""
        return made(**{**REQUIRED, "workloads": [STEADY], **self.spec})

    def judge(self, name: str) -> Judgement:
        """What the built-in check of that name says, asked as pytest would ask it."""
        spec = self.declared()
        found = requirements(spec, Registry())
        requirement = next(item for item in found if item.check.name == name)
        expect = Expect(requirement)
        fixtures = {
            "spec": spec,
            "plan": plan(spec),
            "baseline": (self.earlier or Scene()).reported(),
            "host": Host(self.present, self.nvlink, self.driver),
            "server": self._server(spec),
            "traffic": self._traffic(spec),
            "stopped": Stopped(self.left, 1.5, self.returned),
            "required": requirement.value,
            "expect": expect,
            **requirement.placeholders,
        }
        function = requirement.check.function
        with suppress(NotPassed):
            function(**{name: fixtures[name] for name in inspect.signature(function).parameters})
        assert expect.judgement is not None
        return expect.judgement

    def reported(self) -> Earlier:
        """What a report of this scene says, as far as a later run is compared with it."""
        spec = self.declared()
        traffic = self._traffic(spec)
        devices = {"at_rest": self.devices.to_json(), "under_load": traffic.devices.to_json()}
        entry = {"name": spec.name, "verdict": "READY", "devices": devices}
        return Earlier.of({**entry, "traffic": traffic.to_json()})

    def _server(self, spec: Spec) -> Server:
        good: dict[str, Any] = {
            "model": {"id": MODEL, "max_model_len": 8192},
            "version": "0.32.0",
            "fingerprint": "vllm-0.32.0-tp8-0a1b2c3d",
            "pid": 3999,
            "cache": {
                "kv_cache_size_tokens": str(160 * 8192),
                "block_size": "16",
                "gpu_memory_utilization": "0.85",
            },
        }
        return Server(
            spec=spec,
            endpoint=Endpoint("http://127.0.0.1:1"),
            command="vllm serve",
            time_to_first_token=Evidence(200.0, "ms", "client", 1.0),
            read_devices=lambda: self.devices,
            read_death=lambda: "",
            read_pids=lambda: self.pids,
            read_xids=lambda: self.xids,
            **{**good, **self.server},
        )

    def _traffic(self, spec: Spec) -> Traffic:
        budget = Budget.of(spec)
        served = {}
        for workload in spec.workloads:
            own = self._served(workload, budget, self.samples)
            if capacity := workload.require.capacity:
                tried = self._served(at_rate(workload, capacity), budget, self.at_capacity)
                # All are due after the time in which nothing is decided.
                own = replace(own, at_capacity=replace(tried, start=-10.0))
            served[workload.name] = own
        looks = self.under_load if self.under_load is not None else [self.devices] * 3
        return Traffic(served, Recording(looks, origin=1.0), self.engines)

    def _served(
        self, workload: Workload, budget: Budget, samples: Sequence[Sample]
    ) -> WorkloadTraffic:
        return WorkloadTraffic(
            workload=workload,
            budget=budget,
            samples=samples,
            start=0.0,
            end=10.0,
            began_at=1.0,
            running_peak=Evidence(self.running_peak, "sequences", "/metrics", 1.0),
            preempted=Evidence(self.preempted, "", "/metrics", 1.0),
            interrupted=self.interrupted,
            invalid=self.invalid,
            late=self.late,
            floor=self.floor,
            service=self.service,
        )
