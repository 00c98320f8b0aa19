"""GPUs as the probes read them, over the fake driver."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from statistics import median

import pynvml
import pytest

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import patience, read_host, read_used_gpus
from pytest_llmdeploy.probes.devices import Device
from pytest_llmdeploy.probes.fields import CHANGING, Field
from pytest_llmdeploy.probes.gpus import read_gpus
from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.links import nvlink_pairs
from pytest_llmdeploy.probes.nvml import read_driver
from pytest_llmdeploy.probes.tenants import Tenant
from pytest_llmdeploy.spec import Spec
from tests.fake_nvml import H100, H100_MIG, L40S, FakeNvml, Value

MIB = 1024**2
SOUND: Mapping[Field, float] = {
    Field.UTILIZATION: 0.87,
    Field.TEMPERATURE: 34,
    Field.POWER: 71,
    Field.SM_CLOCK: 345,
    Field.CLOCKS_EVENT_REASONS: 1,
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


def spec(tensor: int = 1, pipeline: int = 1, **env: str) -> Spec:
    return Spec.model_validate(
        {
            "version": 1,
            "model": {"id": "m"},
            "hardware": {"device": "H100-SXM-80GB", "devices_per_node": 8},
            "parallel": {"tensor": tensor, "pipeline": pipeline},
            "serve": {"env": env},
        }
    )


def reason(evidence: Evidence) -> str:
    """Why there is no value; there is none then."""
    assert evidence.value is None
    return evidence.problem.partition(":")[0]


def first(machine: FakeNvml, **overrides: Value) -> Device:
    """GPU 0 of a machine with these keys, dots written as double underscores."""
    machine.update({key.replace("__", "."): value for key, value in overrides.items()})
    return read_gpus("0")[0]


def test_every_gpu_is_listed_with_its_memory(machine: FakeNvml) -> None:
    """Used is what processes hold: what the driver keeps back is counted apart."""
    machine.update({"gpu3.mem.used": 70_000 * MIB})
    devices = read_gpus()
    assert [device.name for device in devices] == [f"GPU {index}" for index in range(8)]
    assert [device.identity for device in devices] == [H100.uuid(index) for index in range(8)]
    third = devices[3]
    assert (third.kind, third.used.value) == (H100.product, 70_000 * MIB)
    assert (third.total.value, third.reserved.value) == (81559 * MIB, 668 * MIB)
    assert third.headroom.value == (81559 - 668 - 70_000) * MIB


def test_an_older_driver_counts_what_it_reserves_as_used(machine: FakeNvml) -> None:
    """The first version of the call has one figure for both, and the source says so."""
    device = first(machine, gpu__error__MemoryInfo_v2=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    assert (device.used.value, device.reserved.value) == ((668 + 4) * MIB, 0)
    assert device.headroom.value == (81559 - 668 - 4) * MIB
    assert "reserved counts as used" in device.used.source


def test_every_field_is_read(machine: FakeNvml) -> None:
    """Each in its unit, with the call that it was read by."""
    device = first(machine, gpu__util__gpu=87)
    assert {name: device.read(name).value for name in Field} == SOUND
    assert {device.read(name).unit for name in Field} == {name.unit for name in Field}
    assert device.read(Field.POWER).source == "NVML: nvmlDeviceGetPowerUsage"


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"gpu.ecc.uncorrected.volatile": 2}, {Field.ECC_UNCORRECTED: 2}),
        ({"gpu.ecc.uncorrected.aggregate": 2}, {}),
        ({"gpu.rows.pending": 1}, {Field.ROWS_PENDING: 1}),
        ({"gpu.rows.failed": 1}, {Field.ROWS_FAILED: 1}),
        ({"gpu.field.230": 2}, {Field.RECOVERY_ACTION: 2}),
        ({"gpu.pcie.gen": 1}, {Field.PCIE_GENERATION: 1}),
        ({"gpu.pcie.width": 8}, {Field.PCIE_WIDTH: 8}),
        ({"gpu.numa": 70, "gpu0.numa": 70}, {Field.NUMA_NODE: 70}),
        ({"gpu.nvlink.7": 0, "gpu.nvlink.17": 2}, {Field.NVLINK_LANES_UP: 16}),
        ({"gpu.nvlink.lanes": 36}, {Field.NVLINK_LANES: 36, Field.NVLINK_LANES_UP: 36}),
        ({"gpu.fabric.state": 2}, {Field.FABRIC_STATE: 2}),
        ({"gpu.fabric.status": 999}, {Field.FABRIC_STATUS: 999}),
        ({"gpu.fabric.health": 1 | 2 << 2}, {Field.FABRIC_DEGRADED: 1}),
        ({"gpu.compute_mode": 3}, {Field.COMPUTE_MODE: 3}),
        ({"gpu.persistence": 0}, {Field.PERSISTENCE_MODE: 0}),
        ({"gpu.clocks.reasons": 0x48}, {Field.CLOCKS_EVENT_REASONS: 0x48}),
        (
            {"gpu.clocks.reasons": 8, "error.CurrentClocksEventReasons": 13},
            {Field.CLOCKS_EVENT_REASONS: 8},
        ),
    ],
    ids=str,
)
def test_a_field_that_differs(
    machine: FakeNvml, overrides: Mapping[str, Value], changed: Mapping[Field, float]
) -> None:
    """What one key of the machine changes is that field, and no other."""
    machine.update({"gpu.util.gpu": 87, **overrides})
    device = read_gpus("0")[0]
    assert {name: device.read(name).value for name in Field} == {**SOUND, **changed}


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        ({"gpu.field.230": ""}, [Field.RECOVERY_ACTION]),
        ({"error.FieldValues": 3}, [Field.RECOVERY_ACTION]),
        ({"gpu.rows.pending": ""}, [Field.ROWS_PENDING, Field.ROWS_FAILED]),
        ({"gpu.nvlink.lanes": ""}, [Field.NVLINK_LANES, Field.NVLINK_LANES_UP]),
        ({"gpu.fabric.health": 0}, [Field.FABRIC_DEGRADED]),
        ({"gpu0.numa": ""}, [Field.NUMA_NODE]),
        ({"gpu.clocks.reasons": ""}, [Field.CLOCKS_EVENT_REASONS]),
        ({"gpu.mig.mode": ""}, [Field.MIG_MODE]),
    ],
    ids=str,
)
def test_a_field_that_is_not_supported(
    machine: FakeNvml, overrides: Mapping[str, Value], unread: Sequence[Field]
) -> None:
    """It is no number, and says so; the others are read all the same."""
    machine.update(overrides)
    device = read_gpus("0")[0]
    found = {name for name in Field if device.read(name).value is None}
    assert found == set(unread)
    assert {reason(device.read(name)) for name in unread} == {"unsupported"}


def test_a_lost_gpu_is_listed_unread(machine: FakeNvml) -> None:
    """A GPU that fell off the bus keeps its place, and no figure of it looks like a number."""
    machine.update({"gpu3.error.*": pynvml.NVML_ERROR_GPU_IS_LOST})
    devices = read_gpus()
    assert len(devices) == 8
    lost = devices[3]
    readings = [lost.used, lost.utilization, lost.headroom, *map(lost.read, Field)]
    assert {reason(reading) for reading in readings} == {"lost"}
    assert lost.used.problem == "lost: NVML says GPU is lost"
    assert lost.tenants.problem.startswith("lost: ")
    assert devices[4].used.value is not None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "unsupported"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "lost"),
        (pynvml.NVML_ERROR_UNKNOWN, "error"),
    ],
)
def test_what_is_unread_says_why(machine: FakeNvml, code: int, expected: str) -> None:
    """Memory that NVML does not tell is no number, also where the older call would answer."""
    machine.update({f"gpu1.error.{name}": code for name in ("MemoryInfo_v2", "PowerUsage")})
    device = read_gpus()[1]
    assert (reason(device.used), reason(device.read(Field.POWER))) == (expected, expected)
    assert device.read(Field.TEMPERATURE).value == 34


def test_tenants(machine: FakeNvml) -> None:
    """Processes that compute, with MPS or without, each once; some drivers tell no size, and in a
    container some tell pids of the host.
    """
    own, hosts = os.getpid(), 2**30
    device = first(
        machine,
        gpu0__processes=f"{own}:1048576,{hosts}:unknown",
        gpu0__processes__mps=f"{hosts + 1}:5,{own}:6",
    )
    assert device.tenants.items == (
        Tenant(own, 1048576, is_here=True),
        Tenant(hosts, None, is_here=False),
        Tenant(hosts + 1, 5, is_here=False),
    )
    assert not read_gpus()[1].tenants.items


@pytest.mark.parametrize(
    ("call", "code", "problem"),
    [
        ("ComputeRunningProcesses", 3, "unsupported: NVML says not supported"),
        # pynvml then raises what is not an NVMLError.
        ("ComputeRunningProcesses", 13, "unsupported: NVML says function not found"),
        ("ComputeRunningProcesses", 4, "no permission: NVML says insufficient permissions"),
        ("MPSComputeRunningProcesses", 4, "no permission: NVML says insufficient permissions"),
        ("MPSComputeRunningProcesses", 3, ""),
        ("MPSComputeRunningProcesses", 13, ""),
    ],
)
def test_tenants_that_cannot_be_seen(machine: FakeNvml, call: str, code: int, problem: str) -> None:
    """No list is not an empty list; where there is no MPS, nobody runs under it."""
    machine.update({f"gpu0.error.{call}": code, "gpu0.processes": "42:5"})
    tenants = read_gpus("0")[0].tenants
    assert (tenants.problem, len(tenants.items)) == (problem, 0 if problem else 1)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "error: the NVIDIA driver is not loaded"),
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            "error: NVML and the kernel driver differ: reboot",
        ),
        (pynvml.NVML_ERROR_UNKNOWN, "error: NVML says unknown error"),
    ],
)
def test_a_driver_that_does_not_start(machine: FakeNvml, code: int, text: str) -> None:
    """Each reason has its own text, for the devices, for their links and for the driver."""
    machine.update({"error.InitWithFlags": code})
    host = read_host(spec(tensor=2))
    assert {reading.problem for reading in host.devices.used.values()} == {text}
    assert {link.problem for link in host.nvlink.values()} == {text}
    assert host.driver == Driver(problem=text)


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, the devices say so instead of being none."""

    def refuse(_name: str) -> None:
        raise OSError

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", refuse)
    problem = "error: there is no NVIDIA driver here (libnvidia-ml.so.1)"
    assert read_gpus().problem == problem
    assert [reading.problem for reading in read_gpus().utilization.values()] == [problem]


def test_versions(machine: FakeNvml) -> None:
    """The driver's as it says it, and CUDA's as people write it."""
    assert read_driver() == Driver("580.95.05", "13.0")
    machine.update({"sys.driver": "550.54.15", "sys.cuda": 12040})
    assert read_driver() == Driver("550.54.15", "12.4")


def test_a_broken_link_is_one_pair(machine: FakeNvml) -> None:
    """Of the 28 pairs of eight GPUs, the one without NVLink is 0 and the others are 1."""
    machine.update({"p2p.2.5.nvlink": pynvml.NVML_P2P_STATUS_NOT_SUPPORTED})
    links = read_host(spec(tensor=8)).nvlink
    assert len(links) == 28
    assert [name for name, link in links.items() if link.value != 1] == ["GPU 2 – GPU 5"]


def test_pcie_gpus_have_no_nvlink(machine: FakeNvml) -> None:
    """GPUs that reach each other over PCIe only are not linked."""
    machine.write(L40S)
    assert [link.value for link in nvlink_pairs([read_gpus("0,1")]).values()] == [0]


def test_a_link_to_a_lost_gpu_is_unread(machine: FakeNvml) -> None:
    """A pair that can't be asked is neither linked nor unlinked."""
    before = read_gpus("0,1")
    machine.update({"gpu1.error.*": pynvml.NVML_ERROR_GPU_IS_LOST})
    for devices in (before, read_gpus("0,1")):
        (link,) = nvlink_pairs([devices]).values()
        assert reason(link) == "lost"


def test_links_are_those_within_a_tensor_group(machine: FakeNvml) -> None:
    """Pairs across tensor groups do not matter, nor do GPUs beyond those that serve."""
    del machine
    links = read_host(spec(tensor=2, pipeline=2, CUDA_VISIBLE_DEVICES="5,4,1,0,7")).nvlink
    assert list(links) == ["GPU 5 – GPU 4", "GPU 1 – GPU 0"]


def test_used_gpus_are_the_first_visible_ones_by_stage(machine: FakeNvml) -> None:
    """The server takes the first GPUs that it sees; ranks fill one stage after the other."""
    del machine
    used = read_used_gpus(spec(tensor=2, pipeline=2, CUDA_VISIBLE_DEVICES="7,6,5,4,3"))
    assert [(d.name, d.stage) for d in used] == [
        ("GPU 7", 0),
        ("GPU 6", 0),
        ("GPU 5", 1),
        ("GPU 4", 1),
    ]


def test_visible_twice_is_no_device(machine: FakeNvml) -> None:
    """CUDA shows none at all, which is told apart from a machine that has none."""
    del machine
    host = read_host(spec(tensor=2, CUDA_VISIBLE_DEVICES="0,0"))
    problem = "error: CUDA_VISIBLE_DEVICES=0,0 names GPU 0 twice: CUDA then shows no device at all"
    assert host.devices.problem == problem
    assert {link.problem for link in host.nvlink.values()} == {problem}
    assert host.driver.version


def test_slices_are_devices(machine: FakeNvml) -> None:
    """Each has its own memory and tenants, and the rest from its GPU."""
    machine.write(H100_MIG, {"gpu1.mig1.processes": "42:7", "gpu1.mig1.error.Temperature": 3})
    devices = read_gpus()
    assert [device.name for device in devices][2:4] == ["GPU 1 MIG 0", "GPU 1 MIG 1"]
    device = devices[3]
    assert (device.identity, device.kind) == (
        H100_MIG.uuid(1, 1, prefix="MIG"),
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    )
    assert (device.total.value, len(device.tenants.items)) == (40448 * MIB, 1)
    assert not devices[2].tenants.items
    # The scope of the fault is the slice, so its GPU would answer.
    assert device.read(Field.TEMPERATURE).value == 34
    assert device.read(Field.TEMPERATURE).source == "NVML of its GPU: nvmlDeviceGetTemperature"
    assert device.read(Field.MIG_MODE).value == 1
    assert reason(device.read(Field.UTILIZATION)) == "unsupported"


def test_a_gpu_cut_into_no_slices_keeps_its_place(machine: FakeNvml) -> None:
    """CUDA shows nothing of it; whoever looks at its mode hears why."""
    device = first(machine, gpu0__mig__mode=1)
    assert (device.name, device.read(Field.MIG_MODE).value) == ("GPU 0", 1)


def test_a_call_that_hangs(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sick GPU told before is kept, the rest is timed out, and the others are read."""
    monkeypatch.setattr(patience, "SECONDS", 0.5)
    machine.update({"gpu3.delay_ms.TotalEccErrors": 60_000})
    host = read_host(spec(tensor=8))
    third = host.devices[3]
    assert (third.used.value, third.read(Field.TEMPERATURE).value) == (4 * MIB, 34)
    problem = "error: timed out: NVML did not answer within 0.5 s"
    assert third.read(Field.ECC_UNCORRECTED).problem == problem
    assert third.read(Field.MIG_MODE).problem == problem
    for device in (*host.devices[:3], *host.devices[4:]):
        assert all(device.read(name).value is not None for name in Field)
    assert {link.value for link in host.nvlink.values()} == {1}
    # As long as it hangs, it is not asked again, and nobody waits.
    monkeypatch.setattr(patience, "SECONDS", 50)
    began = time.monotonic()
    assert reason(read_gpus()[3].used) == "error"
    assert time.monotonic() - began < 10
    machine.write(H100)
    patience._hanging["GPU 3"].join()
    assert read_gpus()[3].used.value == 4 * MIB


@pytest.mark.parametrize("call", ["InitWithFlags", "Count_v2"])
def test_a_driver_that_hangs(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """When NVML itself does not answer, nothing is known, and nobody waits for it twice."""
    monkeypatch.setattr(patience, "SECONDS", 0.5)
    machine.update({f"delay_ms.{call}": 60_000})
    host = read_host(spec(tensor=8))
    problem = "error: timed out: NVML did not answer within 0.5 s"
    assert host.devices.problem == problem
    assert {link.problem for link in host.nvlink.values()} == {problem}
    assert host.driver.problem == problem


def test_a_pair_that_hangs(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one pair: the others of the same GPU are known."""
    devices = read_gpus("0,1,2")
    monkeypatch.setattr(patience, "SECONDS", 0.5)
    machine.update({"gpu1.delay_ms.P2PStatus": 60_000})
    values = {name: link.value for name, link in nvlink_pairs([devices]).items()}
    assert values == {"GPU 0 – GPU 1": 1, "GPU 0 – GPU 2": 1, "GPU 1 – GPU 2": None}


def test_a_look_under_load_is_short(machine: FakeNvml) -> None:
    """It reads memory and what changes; the rest is not asked for."""
    del machine
    (device,) = read_gpus("0", CHANGING)
    assert set(device.fields) == CHANGING
    assert device.used.value == 4 * MIB
    assert reason(device.read(Field.MIG_MODE)) == "unsupported"


def test_probing_is_quick(machine: FakeNvml) -> None:
    """Eight GPUs, all fields, 28 pairs and the driver; the bound leaves room for a busy machine."""
    del machine
    eight = spec(tensor=8)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        read_host(eight)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05, f"median {median(times) * 1000:.1f} ms"


def test_another_machine_is_not_read(machine: FakeNvml) -> None:
    """The GPUs here say nothing of a server elsewhere."""
    del machine
    host = read_host(spec(tensor=2), "http://10.0.0.7:8000")
    assert not host.devices
    assert {link.problem for link in host.nvlink.values()} == {
        "unsupported: the server runs on another machine"
    }
