"""GPUs of another machine, as a page of dcgm-exporter tells of them.

The names are those of the exporter's counters file. Newer ones (DCGM renamed its fields) and those
of an exporter with --use-old-namespace are taken too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from urllib.parse import urlsplit

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.facts import gpus
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.metrics import Metrics
from pytest_llmdeploy.probes.tenants import Tenants
from pytest_llmdeploy.spec.attach import Probes

SOURCE = "dcgm-exporter"
XID = "DCGM_FI_DEV_XID_ERRORS"
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
_MIB = 1024**2
_PEERS = "DCGM_EXP_P2P_STATUS"
_USED, _FREE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"
_TOTAL, _RESERVED = "DCGM_FI_DEV_FB_TOTAL", "DCGM_FI_DEV_FB_RESERVED"
_FIELDS: Mapping[Field, str] = {
    Field.UTILIZATION: "DCGM_FI_DEV_GPU_UTIL",
    Field.TEMPERATURE: "DCGM_FI_DEV_GPU_TEMP",
    Field.POWER: "DCGM_FI_DEV_POWER_USAGE",
    Field.SM_CLOCK: "DCGM_FI_DEV_SM_CLOCK",
    Field.CLOCKS_EVENT_REASONS: "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    Field.ECC_UNCORRECTED: "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    Field.ROWS_PENDING: "DCGM_FI_DEV_ROW_REMAP_PENDING",
    Field.ROWS_FAILED: "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    Field.RECOVERY_ACTION: "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION",
    Field.PCIE_GENERATION: "DCGM_FI_DEV_PCIE_LINK_GEN",
    Field.PCIE_MAX_GENERATION: "DCGM_FI_DEV_PCIE_MAX_LINK_GEN",
    Field.PCIE_WIDTH: "DCGM_FI_DEV_PCIE_LINK_WIDTH",
    Field.PCIE_MAX_WIDTH: "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH",
    Field.FABRIC_STATE: "DCGM_FI_DEV_FABRIC_MANAGER_STATUS",
    Field.COMPUTE_MODE: "DCGM_FI_DEV_COMPUTE_MODE",
    Field.PERSISTENCE_MODE: "DCGM_FI_DEV_PERSISTENCE_MODE",
    Field.MIG_MODE: "DCGM_FI_DEV_MIG_MODE",
}
_ALSO = {
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    "DCGM_FI_DEV_GPU_TEMP_CELSIUS": "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_BOARD_POWER_WATTS": "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERROR": XID,
    "DCGM_FI_DEV_ROW_REMAP_FAILED": "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_DEV_GPU_RECOVERY_ACTION": "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION",
    "DCGM_FI_DEV_GPU_COMPUTE_MODE": "DCGM_FI_DEV_COMPUTE_MODE",
    "DCGM_FI_DEV_GPU_PERSISTENCE_MODE": "DCGM_FI_DEV_PERSISTENCE_MODE",
}
# Where nothing of these moves, nobody reads the GPU any more.
_MOVING = tuple(
    _FIELDS[name] for name in (Field.TEMPERATURE, Field.POWER, Field.SM_CLOCK, Field.UTILIZATION)
)
# What DCGM puts where it has no value (dcgm_structs.h): blank, not found, not supported, not
# permitted, as integers of 32 and 64 bits and as floats. Older exporters print it.
_BLANKS = {float(base + kind) for base in (0x7FFFFFF0, 2**47, 2**63) for kind in range(4)}
_FORBIDDEN = {float(base + 3) for base in (0x7FFFFFF0, 2**47)}
_OLDEST_SECONDS = 60.0
_DRIVER = ("DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION")
_CUDA = "DCGM_FI_CUDA_DRIVER_VERSION"
_NO_PODS = (
    "no row names a pod: run the exporter with DCGM_EXPORTER_KUBERNETES=true, "
    "or leave out attach.probes.namespace and pod"
)


class PageError(Exception):
    """A page that does not tell of the server's GPUs; the text says why."""


@dataclass(frozen=True, slots=True)
class _Sample:
    value: float
    pod: str
    time: float | None


@dataclass(slots=True)
class Gpu:
    """What one page says of one GPU, or of one slice of it. It was asked for `now`; `at` is when
    it was read, at the earliest, unless its samples say so.
    """

    page: str
    now: float
    at: float
    labels: Mapping[str, str]
    samples: dict[str, list[_Sample]] = field(default_factory=lambda: defaultdict(list))
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        slice_ = self._label("GPU_I_ID")
        return f"{self._label('UUID', 'uuid')}{f'/{slice_}' if slice_ else ''}"

    @property
    def host(self) -> str:
        return self._label("hostname", "Hostname") or urlsplit(self.page).netloc

    @property
    def place(self) -> tuple[str, int, int]:
        """Where it comes in order."""
        index, slice_ = self._label("gpu"), self._label("GPU_I_ID")
        return (
            self.host,
            int(index) if index.isdecimal() else 0,
            int(slice_) if slice_.isdecimal() else 0,
        )

    @property
    def name(self) -> str:
        slice_ = self._label("GPU_I_ID")
        return f"GPU {self._label('gpu')}" + (f" MIG {slice_}" if slice_ else "")

    @property
    def kind(self) -> str:
        # An exporter can be told to write its names without blanks.
        known = {gpu.nvml_name.replace(" ", "-"): gpu.nvml_name for gpu in gpus().values()}
        model, profile = self._label("modelName"), self._label("GPU_I_PROFILE")
        model = known.get(model, model)
        return f"{model} MIG {profile}" if profile else model

    @property
    def pods(self) -> list[str]:
        return sorted({s.pod for found in self.samples.values() for s in found if s.pod})

    def read(self, metric: str, unit: str, scale: float = 1.0) -> Evidence:
        """One metric: the value of the device, where its pods have shares of it as well."""
        found = self.samples.get(metric, [])
        whole = [sample for sample in found if not sample.pod] or found
        value, problem = None, _problem(metric, whole, self.now)
        if not problem:
            value = whole[0].value * scale
        at = next((sample.time for sample in whole if sample.time is not None), self.at)
        return Evidence(value, unit, f"{SOURCE} at {self.page}: {metric}", at, problem)

    def linked(self, other: Gpu) -> Evidence:
        """1 if it reaches another one over NVLink, else 0."""
        source = f"{SOURCE} at {self.page}: {_PEERS}"
        status = self.peers.get(other.labels.get("gpu", ""))
        if status is None or self.host != other.host:
            problem = f"unsupported: {SOURCE} does not export {_PEERS} of them"
            return Evidence(None, "", source, self.at, problem)
        return Evidence(float(status == 0), "", source, self.at)

    def _label(self, *names: str) -> str:
        return next((self.labels[name] for name in names if self.labels.get(name)), "")


def read_pages(pages: Mapping[str, Metrics], probes: Probes) -> Sequence[Gpu]:
    """The GPUs of the pods that serve, or all where no pods are named: by host, then by index.

    Raises:
        PageError: when they can't be told from the pages.
    """
    found = [gpu for page, metrics in pages.items() for gpu in _gpus(page, metrics)]
    seen: dict[str, str] = {}
    for gpu in found:
        if (other := seen.setdefault(gpu.identity, gpu.page)) != gpu.page:
            msg = f"{gpu.identity} is on two pages: {other} and {gpu.page}"
            raise PageError(msg)
    if probes.is_for_pods:
        pods = sorted({pod for gpu in found for pod in gpu.pods})
        if not pods:
            raise PageError(_NO_PODS)
        found = [gpu for gpu in found if any(map(probes.covers, gpu.pods))]
        if not found:
            asked = f"{probes.namespace or '*'}/{probes.pod or '*'}"
            msg = f"no GPU is given to {asked}; there are {', '.join(pods)}"
            raise PageError(msg)
    return sorted(found, key=lambda gpu: gpu.place)


def devices(found: Sequence[Gpu]) -> Devices:
    """These GPUs as devices."""
    names = _names(found)
    return Devices(tuple(map(_device, found, names)), SOURCE)


def nvlink_pairs(found: Sequence[Gpu], size: int) -> Mapping[str, Evidence]:
    """For every pair within a tensor-parallel group of this size, whether it is linked."""
    named = list(zip(_names(found), found, strict=True))
    groups = (named[start : start + size] for start in range(0, len(named), size))
    return {
        f"{name} – {other_name}": gpu.linked(other)
        for group in groups
        for (name, gpu), (other_name, other) in combinations(group, 2)
    }


def driver(found: Sequence[Gpu]) -> Driver:
    """The driver, as a label says it where the exporter has one; the same on all nodes."""
    versions = {gpu.labels[name] for gpu in found for name in _DRIVER if gpu.labels.get(name)}
    cudas = {gpu.labels[_CUDA] for gpu in found if gpu.labels.get(_CUDA)}
    if len(versions) > 1 or len(cudas) > 1:
        differing = ", ".join(sorted(versions if len(versions) > 1 else cudas))
        return Driver(problem=f"error: the nodes differ: {differing}")
    if not versions:
        return Driver(problem=f"unsupported: {SOURCE} has no label {_DRIVER[0]}")
    cuda = next(iter(cudas), "")
    # As NVML says it: 12040 is 12.4.
    major, minor = divmod(int(cuda), 1000) if cuda.isdecimal() else (0, 0)
    return Driver(versions.pop(), f"{major}.{minor // 10}" if major else "")


def moving(found: Iterable[Gpu]) -> Sequence[tuple[str, str, float]]:
    """What can't stand still while somebody reads the GPUs: the energy that each has taken, else
    its temperature, power, clock and utilization.
    """
    samples = [
        (gpu.identity, metric, sample.value)
        for gpu in found
        for metric in (ENERGY, *_MOVING)
        for sample in gpu.samples.get(metric, ())
    ]
    return [sample for sample in samples if sample[1] == ENERGY] or samples


def _names(found: Sequence[Gpu]) -> list[str]:
    several = len({gpu.host for gpu in found}) > 1
    return [f"{gpu.host} {gpu.name}" if several else gpu.name for gpu in found]


def _gpus(page: str, metrics: Metrics) -> Iterator[Gpu]:
    found: dict[str, Gpu] = {}
    for name, samples in metrics.samples.items():
        # The parser gives every counter the end that OpenMetrics wants.
        metric = name.removesuffix("_total")
        metric = _ALSO.get(metric, metric)
        if not metric.startswith(("DCGM_FI_", _PEERS)):
            continue
        for (labels, value), time in zip(samples, metrics.times[name], strict=True):
            gpu = Gpu(page, metrics.at, metrics.at, labels)
            # Those of links and switches have no UUID.
            if gpu.identity:
                known = found.setdefault(gpu.identity, gpu)
                if metric == _PEERS:
                    known.peers[labels.get("peer_gpu", "")] = float(value)
                else:
                    known.samples[metric].append(_Sample(float(value), _pod(labels), time))
    if not found:
        msg = f"{page} tells of no GPU: is it a dcgm-exporter?"
        raise PageError(msg)
    yield from found.values()


def _pod(labels: Mapping[str, str]) -> str:
    """The pod that has the GPU; a Prometheus in between calls its own target `pod`."""
    for prefix, suffix in (("exported_", ""), ("", ""), ("", "_name")):
        if pod := labels.get(f"{prefix}pod{suffix}"):
            space = "pod_namespace" if suffix else f"{prefix}namespace"
            return f"{labels.get(space, '')}/{pod}"
    return ""


def _problem(metric: str, samples: Sequence[_Sample], now: float) -> str:
    if not samples:
        return f"unsupported: {SOURCE} does not export {metric}"
    value = samples[0].value
    # NaN is not even itself.
    if any(sample.value != value for sample in samples) and not math.isnan(value):
        return f"error: {metric} has several values for one device"
    if value in _FORBIDDEN:
        return f"no permission: DCGM may not read {metric}"
    if value in _BLANKS or not math.isfinite(value):
        return f"unsupported: DCGM has no value of {metric}"
    age = max((now - sample.time for sample in samples if sample.time is not None), default=0.0)
    return f"error: stale: {metric} is {age:.0f} s old" if age > _OLDEST_SECONDS else ""


def _device(gpu: Gpu, name: str) -> Device:
    total, used, reserved = _memory(gpu)
    scales = {Field.UTILIZATION: 0.01}
    return Device(
        name=name,
        identity=gpu.identity,
        kind=gpu.kind,
        total=total,
        used=used,
        reserved=reserved,
        fields={
            read: gpu.read(metric, read.unit, scales.get(read, 1.0))
            for read, metric in _FIELDS.items()
        },
        tenants=Tenants(problem=f"unsupported: {SOURCE} names pods, and no processes"),
        pods=gpu.pods,
    )


def _memory(gpu: Gpu) -> tuple[Evidence, Evidence, Evidence]:
    """In all, in use, and kept back: of the four figures, any three say the other one."""
    total, used, free, reserved = (
        gpu.read(metric, "B", _MIB) for metric in (_TOTAL, _USED, _FREE, _RESERVED)
    )
    if used.value is None or free.value is None:
        return total, used, reserved
    if total.value is None and reserved.value is not None:
        source = f"{SOURCE} at {gpu.page}: {_USED} + {_FREE} + {_RESERVED}"
        total = Evidence(used.value + free.value + reserved.value, "B", source, used.at)
    elif reserved.value is None and total.value is not None:
        source = f"{SOURCE} at {gpu.page}: {_TOTAL} − {_USED} − {_FREE}"
        reserved = Evidence(total.value - used.value - free.value, "B", source, used.at)
    return total, used, reserved
