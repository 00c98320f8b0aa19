"""Every check of the hardware: a scene in which it passes, one in which it fails and one in which
it can't be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pytest_llmdeploy.checks import Registry
from pytest_llmdeploy.evidence import Evidence, Status
from pytest_llmdeploy.probes import Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.tenants import Tenant, Tenants
from pytest_llmdeploy.probes.xids import Xids
from tests.checks.scenes import GIB, OURS, SOUND, Scene, gpus, idle, serving

UNSEEN = Tenants(problem="unsupported: NVML says not supported")
FOREIGN = Tenants((Tenant(4711, 12 * GIB),))
ELSEWHERE = Tenants((Tenant(4711, None, is_here=False),))
GONE = Devices((), "NVML", "error: gone")
HALF = {"parallel": {"tensor": 4, "data": 2}}
NAMES = [f"GPU {index}" for index in range(8)]


def host(**fields: float | None) -> Scene:
    """A machine of which GPU 3 differs."""
    return Scene(present=idle(fields={3: {Field(name): value for name, value in fields.items()}}))


def loaded(looks: int = 3, **fields: float | None) -> Scene:
    """Traffic, in the last look of which GPU 3 differs."""
    odd = serving(fields={3: {Field(name): value for name, value in fields.items()}})
    return Scene(under_load=[*[serving()] * (looks - 1), odd])


def total(gib: float | None) -> Scene:
    """A machine with so much memory on GPU 3."""
    problem = "" if gib is not None else "unsupported: unified memory"
    read = Evidence(gib and gib * GIB, "B", "NVML", 1.0, problem)
    items = [replace(one, total=read) if one.name == "GPU 3" else one for one in idle()]
    return Scene(present=replace(idle(), items=tuple(items)))


def alternating() -> Devices:
    """GPUs on two NUMA nodes, in turn."""
    return idle(fields={index: {Field.NUMA_NODE: index % 2} for index in range(8)})


def hidden(used: float = 64) -> Devices:
    """GPUs in a container that does not see pids."""
    return gpus((64,) * 7 + (used,))


# Check: what it finds in a good scene; the scene in which it fails, what it finds; the one in which
# it can't be read, and why.
DEVICES: Mapping[str, tuple[str, Scene, str, Scene, str]] = {
    "memory_total": (
        "80 GiB (GPU 0)", total(40), "40 GiB (GPU 3)", total(None), "unified memory (GPU 3)",
    ),
    "devices_idle": (
        "8 of 8 idle",
        Scene(present=idle(tenants={3: FOREIGN})), "GPU 3: pid 4711 on it",
        Scene(present=idle(tenants={3: UNSEEN})), "unsupported",
    ),
    "only_ours": (
        "ours alone on each",
        Scene(devices=serving(tenants={3: FOREIGN})), "GPU 3: pid 4711 not ours",
        Scene(pids=frozenset()), "unsupported: the server's processes can't be seen from here",
    ),
    "driver_version": (
        "580.95.05",
        Scene(driver=Driver("535.86.10", "12.2")), "535.86.10",
        Scene(driver=Driver(problem="error: there is no NVIDIA driver here")), "no NVIDIA driver",
    ),
    "cuda_version": (
        "13.0",
        Scene(driver=Driver("535.86.10", "12.2")), "12.2",
        Scene(driver=Driver(problem="error: there is no NVIDIA driver here")), "no NVIDIA driver",
    ),
    "compute_mode": (
        "default on each",
        host(compute_mode=3), "GPU 3: exclusive process",
        host(compute_mode=None), "unsupported",
    ),
    "persistence": (
        "enabled on each",
        host(persistence_mode=0), "GPU 3: disabled",
        host(persistence_mode=None), "unsupported",
    ),
    "mig": (
        "disabled on each", host(mig_mode=1), "GPU 3: enabled", host(mig_mode=None), "unsupported",
    ),
    "ecc": (
        "0 errors on each",
        host(ecc_uncorrected=2), "GPU 3: 2 uncorrected",
        host(ecc_uncorrected=None), "unsupported: NVML says not supported (GPU 3)",
    ),
    "row_remapping": (
        "nothing pending or failed",
        host(rows_pending=1), "GPU 3: waits for a reset",
        host(rows_failed=None), "unsupported",
    ),
    "recovery": (
        "none on each",
        host(recovery_action=2), "GPU 3: reboot the node",
        host(recovery_action=None), "unsupported",
    ),
    "nvlink_lanes": (
        "18 lanes up on each",
        host(nvlink_lanes_up=17), "GPU 3: 17 of 18 lanes",
        host(nvlink_lanes_up=None), "unsupported",
    ),
    "nvlink_fabric": (
        "8 of 8 registered",
        host(fabric_state=2), "GPU 3: in progress",
        host(fabric_state=0), "unsupported: there is no NVSwitch fabric (GPU 3)",
    ),
    "pcie_width": (
        "16 lanes on each",
        host(pcie_width=8), "GPU 3: 8 of 16 lanes",
        host(pcie_max_width=None), "unsupported",
    ),
    "numa": (
        "as few as can be",
        Scene(spec=HALF, present=alternating()), "GPU 0 – GPU 3: on 2 NUMA nodes, and 1 more",
        host(numa_node=-1), "unsupported: the firmware does not say",
    ),
    "memory_utilization_under_load": (
        "80 % (GPU 0)",
        Scene(under_load=[serving(), serving((64,) * 7 + (70,)), serving()]), "87.5 % (GPU 7)",
        Scene(under_load=[]), "were not looked at",
    ),
    "memory_headroom_under_load": (
        "16 GiB (GPU 0)",
        Scene(under_load=[serving(), serving((64,) * 7 + (70,)), serving()]), "10 GiB (GPU 7)",
        Scene(under_load=[serving((64,) * 7 + (None,))]), "lost: GPU is lost (GPU 7)",
    ),
    "pcie_generation": (
        "5 on each",
        Scene(under_load=[serving(fields={3: {Field.PCIE_GENERATION: 4}})]), "GPU 3: 4 of 5",
        loaded(pcie_generation=None), "unsupported",
    ),
    "clocks": (
        "8 of 8, none held back",
        loaded(looks=60, clocks_event_reasons=4 | 0x40),
        "GPU 3: HW thermal slowdown in 1 of 60 looks",
        loaded(clocks_event_reasons=None), "unsupported",
    ),
    "xids": (
        "not observed in 90 s",
        Scene(xids=Xids({"GPU 3": [79, 79]}, NAMES, 90)), "GPU 3: XID 79 (fallen off the bus)",
        Scene(xids=Xids(problem="no permission: events")), "no permission: events",
    ),
    "memory_returned": (
        "8 of 8 as before",
        Scene(returned=gpus((0.01,) * 7 + (12,), tenants={7: FOREIGN})),
        "GPU 7: 12 GiB more by pid 4711",
        Scene(returned=gpus((0.01,) * 7)), "error: not seen after the stop (GPU 7)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_passes(name: str) -> None:
    """On sound hardware the check passes, says what it found and where."""
    found = Scene().judge(name)
    assert found.status is Status.PASS
    assert found.result.startswith(DEVICES[name][0])
    assert found.evidence["source"]


@pytest.mark.parametrize("name", DEVICES)
def test_fails(name: str) -> None:
    """With one device at fault it names that device and the fault, and says what to do."""
    _, scene, result, _, _ = DEVICES[name]
    found = scene.judge(name)
    assert found.status is Status.FAIL
    assert found.result.startswith(result)
    assert found.requirement
    assert found.hint


@pytest.mark.parametrize("name", DEVICES)
def test_what_cannot_be_read_is_an_error(name: str) -> None:
    """A reading that is missing is never a pass, and the row says why it is missing."""
    _, _, _, scene, result = DEVICES[name]
    found = scene.judge(name)
    assert found.status is Status.ERROR
    assert result in found.result


# Further scenes of a check: what becomes of it, and what it finds.
FURTHER: list[tuple[str, Scene, Status, str]] = [
    ("devices_idle", Scene(present=gpus((0.004,) * 7 + (2,))), Status.FAIL,
     "GPU 7: 2 GiB in use, by no process seen"),
    ("devices_idle", Scene(spec={"parallel": {"tensor": 4}}, present=idle(tenants={5: FOREIGN})),
     Status.PASS, "4 of 4 idle"),
    ("only_ours", Scene(devices=serving((64,) * 7 + (0,), tenants={7: Tenants()})), Status.FAIL,
     "GPU 7: no process of ours"),
    ("only_ours", Scene(devices=hidden()), Status.PASS, "UNATTRIBUTABLE, memory as planned"),
    ("only_ours", Scene(devices=hidden(79)), Status.FAIL,
     "GPU 7: UNATTRIBUTABLE, 79 GiB in use, 67.3 GiB planned"),
    ("only_ours", Scene(devices=hidden(), present=gpus((0.004,) * 7 + (12,))), Status.FAIL,
     "GPU 7: UNATTRIBUTABLE, 12 GiB in use before the launch"),
    ("only_ours", Scene(devices=hidden(), server={"pid": None}), Status.ERROR,
     "unsupported: UNATTRIBUTABLE, and not read before the launch (GPU 0 and 7 more)"),
    ("only_ours", Scene(devices=serving(tenants={3: ELSEWHERE})),
     Status.PASS, "UNATTRIBUTABLE"),
    ("only_ours", Scene(devices=hidden(), spec={"model": {"id": "unknown/model"}}), Status.ERROR,
     "its memory is not planned"),
    ("only_ours", Scene(devices=serving(tenants={3: UNSEEN})), Status.ERROR, "unsupported"),
    ("only_ours", Scene(devices=serving((64,) * 7 + (None,), tenants={7: FOREIGN})), Status.FAIL,
     "GPU 7: pid 4711 not ours"),
    ("only_ours", Scene(devices=serving((64,) * 7 + (None,))), Status.ERROR, "lost: GPU is lost"),
    ("cuda_version", Scene(driver=Driver("550")), Status.ERROR, "the version of CUDA is not told"),
    ("compute_mode", host(compute_mode=2), Status.FAIL, "GPU 3: prohibited"),
    ("row_remapping", host(rows_failed=1), Status.FAIL, "GPU 3: a row has failed"),
    ("nvlink_fabric", host(fabric_status=9), Status.FAIL, "GPU 3: registration failed, status 9"),
    ("nvlink_fabric", host(fabric_degraded=1), Status.FAIL, "GPU 3: less bandwidth"),
    ("nvlink_fabric", host(fabric_degraded=None), Status.PASS, "8 of 8 registered"),
    ("numa", Scene(spec={"parallel": {"tensor": 1, "data": 8}}), Status.PASS, "TP 1 has none"),
    ("numa", Scene(present=alternating()), Status.PASS, "as few as can be"),
    ("clocks", Scene(under_load=[]), Status.ERROR, "were not looked at"),
    ("clocks", loaded(clocks_event_reasons=8 | 0x80), Status.FAIL, "HW slowdown, HW power brake"),
    ("xids", Scene(xids=Xids(devices=NAMES[:7], seconds=90)), Status.ERROR, "nobody watched it"),
    ("memory_returned", Scene(returned=GONE), Status.ERROR, "error: gone"),
    ("memory_returned", Scene(present=gpus((0.004,) * 7)), Status.ERROR, "before the launch"),
    ("memory_total", Scene(present=GONE), Status.ERROR, "error: gone"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scene", "status", "result"), FURTHER)
def test_further(name: str, scene: Scene, status: Status, result: str) -> None:
    """Other ways to be at fault, or not to be."""
    found = scene.judge(name)
    assert (found.status, result in found.result) == (status, True), found.result


# Memory is limited on workers too; what the driver and the links would say is an ERROR there.
ON_CPU = {"memory_utilization_under_load", "memory_headroom_under_load"}
ON_CPU |= {"driver_version", "cuda_version", "persistence", "nvlink_lanes"}


@pytest.mark.parametrize(
    ("device", "absent"),
    [
        ("H100-SXM-80GB", set()),
        ("A100-SXM-80GB", {"nvlink_fabric"}),
        ("L40S-48GB", {"nvlink_fabric", "mig"}),
        ({"name": "own", "memory": "40GiB"}, {"nvlink_fabric", "mig"}),
        ("cpu", {*DEVICES} - ON_CPU),
    ],
    ids=["H100", "A100", "L40S", "own", "cpu"],
)
def test_what_a_device_does_not_have_is_not_asked_of_it(device: object, absent: set[str]) -> None:
    """Every kind of device has the rows that it can have."""
    spec = Scene(spec={"hardware": {"device": device}}).declared()
    checks = [check for check in Registry() if check.name in DEVICES and check.when]
    assert {check.name for check in checks if check.when and not check.when(spec)} == absent


def test_the_worst_device_is_known_by_its_uuid() -> None:
    """A name is good until the next boot: the evidence has the UUID."""
    found = host(ecc_uncorrected=2).judge("ecc")
    assert found.evidence["worst"] == "GPU 3"
    assert found.evidence["readings"]["GPU 3"]["identity"] == "GPU-3"


def test_a_launched_server_is_balanced_beyond_what_was_there() -> None:
    """What was in use before the launch is not the server's imbalance."""
    before, after = gpus((0,) * 7 + (8,)), serving((56,) * 7 + (64,))
    assert Scene(present=before, devices=after).judge("memory_balance").result == "0 % (GPU 0)"
    attached = Scene(present=before, devices=after, server={"pid": None})
    assert attached.judge("memory_balance").status is Status.FAIL


def test_what_goes_with_throttling_is_recorded() -> None:
    """Least, median and most of temperature, power and clock are in the row's evidence."""
    evidence = loaded(temperature=90, clocks_event_reasons=0x20).judge("clocks").evidence
    assert evidence["temperature"]["GPU 3"] == [61, 61, 90]
    assert evidence["power"]["GPU 0"] == [SOUND[Field.POWER]] * 3
    assert evidence["reasons"]["GPU 3"] == ["SW power cap", "SW thermal slowdown"]


def test_processes_are_recorded() -> None:
    """Who was on a device is in the row's evidence."""
    evidence = Scene().judge("only_ours").evidence
    assert evidence["processes"]["GPU 1"] == [{"pid": OURS[1], "used_bytes": 64 * GIB}]
