"""The fake NVML against the real pynvml."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from . import A100, H100, H100_MIG, L40S, PROFILES, FakeNvml, Profile

Call = Callable[[int], object]

CODES = sorted(code for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
NVLINK = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
READ = 0  # pynvml's own NVML_P2P_CAPS_INDEX_READ is a tuple, which ctypes refuses
XID = pynvml.nvmlEventTypeXidCriticalError


def gpu(index: int) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def fabric(index: int, version: int = 0x02000024) -> Any:
    info = pynvml.c_nvmlGpuFabricInfoV_t()
    info.version = version
    pynvml.nvmlDeviceGetGpuFabricInfoV(gpu(index), ctypes.byref(info))
    return info


def register(index: int) -> Any:
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(gpu(index), XID, events)
    return events


def plain(symbol: str) -> Call:
    """A pynvml function that takes a handle and nothing else."""
    return lambda index: getattr(pynvml, symbol)(gpu(index))


DEVICE_CALLS: dict[str, Call] = {
    **{
        name: plain(f"nvmlDeviceGet{name}")
        for name in (
            "ComputeInstanceId",
            "ComputeMode",
            "CudaComputeCapability",
            "CurrPcieLinkGeneration",
            "CurrPcieLinkWidth",
            "CurrentClocksEventReasons",
            "CurrentClocksThrottleReasons",
            "DeviceHandleFromMigDeviceHandle",
            "EccMode",
            "GpuInstanceId",
            "Index",
            "MaxMigDeviceCount",
            "MaxPcieLinkGeneration",
            "MaxPcieLinkWidth",
            "MemoryInfo",
            "MigMode",
            "Name",
            "PciInfo_v3",
            "PersistenceMode",
            "PowerUsage",
            "RemappedRows",
            "UUID",
            "UtilizationRates",
        )
    },
    "IsMigDeviceHandle": plain("nvmlDeviceIsMigDeviceHandle"),
    "ComputeRunningProcesses_v3": plain("nvmlDeviceGetComputeRunningProcesses"),
    "MPSComputeRunningProcesses_v3": plain("nvmlDeviceGetMPSComputeRunningProcesses"),
    "ClockInfo": lambda i: pynvml.nvmlDeviceGetClockInfo(gpu(i), pynvml.NVML_CLOCK_SM),
    "FieldValues": lambda i: pynvml.nvmlDeviceGetFieldValues(gpu(i), [230]),
    "GpuFabricInfoV": fabric,
    "HandleByIndex_v2": gpu,
    "HandleByPciBusId_v2": lambda i: pynvml.nvmlDeviceGetHandleByPciBusId(
        H100_MIG.keys()[f"gpu{i}.pci"]
    ),
    "HandleByUUID": lambda i: pynvml.nvmlDeviceGetHandleByUUID(H100_MIG.uuid(i)),
    "MemoryInfo_v2": lambda i: pynvml.nvmlDeviceGetMemoryInfo(gpu(i), pynvml.nvmlMemory_v2),
    "MemoryAffinity": lambda i: pynvml.nvmlDeviceGetMemoryAffinity(gpu(i), 1, 0),
    "MigDeviceHandleByIndex": lambda i: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu(i), 0),
    "NvLinkRemoteDeviceType": lambda i: pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu(i), 0),
    "NvLinkState": lambda i: pynvml.nvmlDeviceGetNvLinkState(gpu(i), 0),
    "NvLinkVersion": lambda i: pynvml.nvmlDeviceGetNvLinkVersion(gpu(i), 0),
    "P2PStatus": lambda i: pynvml.nvmlDeviceGetP2PStatus(gpu(i), gpu(0), NVLINK),
    "RegisterEvents": register,
    "Temperature": lambda i: pynvml.nvmlDeviceGetTemperature(gpu(i), pynvml.NVML_TEMPERATURE_GPU),
    "TopologyCommonAncestor": lambda i: pynvml.nvmlDeviceGetTopologyCommonAncestor(gpu(i), gpu(0)),
    "TotalEccErrors": lambda i: pynvml.nvmlDeviceGetTotalEccErrors(gpu(i), 1, 0),
}
SYSTEM_CALLS: dict[str, Callable[[], object]] = {
    "Count_v2": pynvml.nvmlDeviceGetCount,
    "CudaDriverVersion_v2": pynvml.nvmlSystemGetCudaDriverVersion_v2,
    "DriverVersion": pynvml.nvmlSystemGetDriverVersion,
    "EventSetCreate": pynvml.nvmlEventSetCreate,
    "EventSetFree": lambda: pynvml.nvmlEventSetFree(pynvml.nvmlEventSetCreate()),
    "EventSetWait_v2": lambda: pynvml.nvmlEventSetWait_v2(pynvml.nvmlEventSetCreate(), 0),
    "InitWithFlags": pynvml.nvmlInit,
    "NVMLVersion": pynvml.nvmlSystemGetNVMLVersion,
    "Shutdown": pynvml.nvmlShutdown,
}


@pytest.fixture
def machine(machine: FakeNvml) -> Iterator[FakeNvml]:
    """Eight healthy H100s in this process, initialised."""
    pynvml.nvmlInit()
    yield machine
    machine.write(H100)
    pynvml.nvmlShutdown()


def run(fake: FakeNvml, script: str) -> list[str]:
    """The lines that a fresh process prints, with pynvml at hand as `nvml`."""
    command = [sys.executable, "-c", f"import pynvml as nvml\n{script}"]
    environment = os.environ | fake.env()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "c_nvmlEventData_t",
        "c_nvmlFieldValue_t",
        "c_nvmlGpuFabricInfoV_t",
        "c_nvmlMemory_t",
        "c_nvmlMemory_v2_t",
        "c_nvmlProcessInfo_v3_t",
        "c_nvmlUtilization_t",
        "nvmlPciInfo_t",
    ],
)
def test_struct_sizes(machine: FakeNvml, name: str) -> None:
    """Each struct is as large in the fake as in pynvml."""
    sizeof = machine.load().fake_nvml_sizeof
    sizeof.restype = ctypes.c_size_t

    assert sizeof(name.encode()) == ctypes.sizeof(getattr(pynvml, name))


@pytest.mark.skipif(shutil.which("nm") is None, reason="symbols are listed with nm")
def test_every_symbol_is_covered(nvml_library: Path) -> None:
    """Each function that the fake exports is called below, and known to pynvml by that name."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(nvml_library)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    symbols = re.findall(r" T (nvml\w+)", listing)
    names = {re.sub("^nvml(DeviceGet|SystemGet|Device)?", "", symbol) for symbol in symbols}
    source = Path(pynvml.__file__).read_text(encoding="utf-8")

    assert names == {*DEVICE_CALLS, *SYSTEM_CALLS, "ErrorString"}
    assert [symbol for symbol in symbols if f'"{symbol}"' not in source] == []


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_profile(machine: FakeNvml, profile: Profile) -> None:
    """Each profile lists eight distinct GPUs with the product's name, memory and lanes."""
    machine.write(profile)
    handles = [gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    lanes = profile.nvlink_lanes

    assert len({pynvml.nvmlDeviceGetUUID(handle) for handle in handles}) == 8
    assert len({pynvml.nvmlDeviceGetPciInfo(handle).busId for handle in handles}) == 8
    for index, handle in enumerate(handles):
        assert pynvml.nvmlDeviceGetIndex(handle) == index
        assert pynvml.nvmlDeviceGetName(handle) == profile.product
        assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == profile.memory_mib << 20
        assert pynvml.nvmlDeviceGetCudaComputeCapability(handle) == profile.capability
        error = pynvml.NVMLError_InvalidArgument if lanes else pynvml.NVMLError_NotSupported
        assert [pynvml.nvmlDeviceGetNvLinkState(handle, lane) for lane in range(lanes)] == (
            [1] * lanes
        )
        with pytest.raises(error):
            pynvml.nvmlDeviceGetNvLinkState(handle, lanes)


def test_uuids_differ_between_profiles() -> None:
    """No two profiles share a GPU, and rendering one twice gives the same."""
    uuids = [profile.uuid(index) for profile in PROFILES.values() for index in range(8)]

    assert len(set(uuids)) == len(uuids)
    assert H100.keys() == H100.keys()


def test_sixteen_gpus(machine: FakeNvml) -> None:
    """Bus ids remain distinct beyond one PCI domain."""
    machine.write(H100, count=16)

    assert len({pynvml.nvmlDeviceGetPciInfo(gpu(index)).busId for index in range(16)}) == 16


def test_system(machine: FakeNvml) -> None:
    """Versions come from the description."""
    machine.update({"sys.driver": "535.10", "sys.cuda": 12020})

    assert pynvml.nvmlSystemGetDriverVersion() == "535.10"
    assert pynvml.nvmlSystemGetCudaDriverVersion_v2() == 12020
    assert pynvml.nvmlSystemGetNVMLVersion() == "13.580.95.05"


@pytest.mark.parametrize("name", DEVICE_CALLS)
def test_device_errors(machine: FakeNvml, name: str) -> None:
    """Each error of each function surfaces as pynvml's class for it, on that GPU alone."""
    machine.write(H100_MIG, {"gpu.util.gpu": 0, "gpu.gi": 0, "gpu.ci": 0})
    call = DEVICE_CALLS[name]
    call(3)
    for code in CODES:
        # To ask for the processes means to be told INSUFFICIENT_SIZE first, which is no error,
        # and pynvml has an exception of its own for a missing function.
        if "Processes" in name and code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
            continue
        mismatch = "Processes" in name and code == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        machine.update({f"gpu3.error.{name}": code})
        with pytest.raises(
            pynvml.NVMLLibraryMismatchError if mismatch else pynvml.nvmlExceptionClass(code)
        ):
            call(3)
    call(2)


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_errors(machine: FakeNvml, name: str) -> None:
    """Each error of each function without a GPU surfaces as pynvml's class for it."""
    for code in CODES:
        machine.update({f"error.{name}": code})
        with pytest.raises(pynvml.nvmlExceptionClass(code)):
            SYSTEM_CALLS[name]()


def test_unversioned_injection(machine: FakeNvml) -> None:
    """An error without a version covers all versions of a function, one with it only its own."""
    machine.update({"error.MemoryInfo": 3, "gpu1.error.MemoryInfo_v2": 13, "gpu1.error.*": 0})

    for version in (None, pynvml.nvmlMemory_v2):
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceGetMemoryInfo(gpu(0), version)
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetMemoryInfo(gpu(1), pynvml.nvmlMemory_v2)
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu(1)).total == 81559 << 20


def test_lost_gpu(machine: FakeNvml) -> None:
    """A lost GPU is still counted, but gives no handle, and the one in hand stops working."""
    before = gpu(3)
    machine.update({"gpu3.error.*": 15})

    assert pynvml.nvmlDeviceGetCount() == 8
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        gpu(3)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetUUID(before)
    assert pynvml.nvmlDeviceGetName(gpu(4)) == H100.product


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: gpu(8), pynvml.NVMLError_InvalidArgument),
        (lambda: pynvml.nvmlDeviceGetName(None), pynvml.NVMLError_InvalidArgument),
        (lambda: pynvml.nvmlDeviceGetHandleByUUID("GPU-0"), pynvml.NVMLError_NotFound),
        (lambda: pynvml.nvmlDeviceGetHandleByPciBusId("0000:00:00.0"), pynvml.NVMLError_NotFound),
        (
            lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu(0), version=0x01000028),
            pynvml.NVMLError_ArgumentVersionMismatch,
        ),
        (lambda: fabric(0, version=0x03000028), pynvml.NVMLError_ArgumentVersionMismatch),
    ],
    ids=["index", "handle", "uuid", "bus-id", "memory-version", "fabric-version"],
)
def test_wrong_arguments(
    machine: FakeNvml, call: Callable[[], object], error: type[Exception]
) -> None:
    """What the driver would refuse is refused."""
    del machine
    with pytest.raises(error):
        call()


def test_handles(machine: FakeNvml) -> None:
    """A GPU is found by its UUID, and by its bus id in both lengths of the domain."""
    machine.write(H100)
    uuid = pynvml.nvmlDeviceGetUUID(gpu(5))
    bus_id = pynvml.nvmlDeviceGetPciInfo(gpu(5)).busId

    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == 5
    for name in (bus_id, bus_id.removeprefix("0000")):
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(name)) == 5


def test_absent_and_unreadable_values(machine: FakeNvml) -> None:
    """An empty value is not supported, and a wrong one an unknown error instead of a number."""
    machine.update({"gpu1.power": "", "gpu2.power": "71W"})

    assert pynvml.nvmlDeviceGetPowerUsage(gpu(0)) == 71_000
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(gpu(1))
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetPowerUsage(gpu(2))


def test_memory(machine: FakeNvml) -> None:
    """The first version counts the reserved memory as used, the second does not."""
    machine.update({"gpu3.mem.used": 5 << 30, "gpu.mem.reserved": 1 << 30})
    first = pynvml.nvmlDeviceGetMemoryInfo(gpu(3))
    second = pynvml.nvmlDeviceGetMemoryInfo(gpu(3), pynvml.nvmlMemory_v2)

    assert (first.used, second.used, second.reserved) == (6 << 30, 5 << 30, 1 << 30)
    assert first.free == second.free == (81559 << 20) - (6 << 30)
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu(2), pynvml.nvmlMemory_v2).used == 4 << 20


def test_state_changes_mid_run(machine: FakeNvml) -> None:
    """A handle in use sees a new description at the next call."""
    handle = gpu(0)
    used = []
    for amount in (1, 2, 3):
        machine.update({"gpu0.mem.used": amount})
        used.append(pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used)

    assert used == [1, 2, 3]


def test_state_is_replaced_whole(machine: FakeNvml) -> None:
    """A reader never sees a half-written description."""
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            machine.update({"gpu7.name": "another"})

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert {pynvml.nvmlDeviceGetMemoryAffinity(gpu(7), 1, 0)[0] for _ in range(200)} == {2}
    finally:
        stop.set()
        writer.join()


def test_delay(machine: FakeNvml) -> None:
    """A slow GPU blocks its own caller, while another thread goes on."""
    machine.update({"gpu3.delay_ms.MemoryInfo": 3000})
    sick = threading.Thread(target=DEVICE_CALLS["MemoryInfo"], args=(3,))
    start = time.monotonic()
    sick.start()
    DEVICE_CALLS["MemoryInfo"](2)
    healthy = time.monotonic() - start
    sick.join()

    assert healthy < 3 <= time.monotonic() - start


def test_delay_of_everything(machine: FakeNvml) -> None:
    """A delay can cover all functions, and be lifted for one."""
    machine.update({"delay_ms.*": 2500, "delay_ms.Count": 0})
    start = time.monotonic()
    pynvml.nvmlDeviceGetCount()
    quick = time.monotonic() - start
    gpu(0)
    machine.update({"delay_ms.*": 0})

    assert quick < 2.5 <= time.monotonic() - start


def test_after(fake: FakeNvml) -> None:
    """An error starts after so many calls on that GPU, the two-call processes counting once."""
    fake.update(
        {
            "error.MemoryInfo": 15,
            "gpu3.after.MemoryInfo": 2,
            "error.ComputeRunningProcesses": 15,
            "after.ComputeRunningProcesses": 1,
            "gpu.processes": "1:2",
        }
    )

    assert run(
        fake,
        """
def attempt(call, index):
    try:
        call(nvml.nvmlDeviceGetHandleByIndex(index))
        print("fine")
    except nvml.NVMLError as error:
        print(error)
nvml.nvmlInit()
for index in (3, 2, 3, 3):
    attempt(nvml.nvmlDeviceGetMemoryInfo, index)
for index in (0, 0, 1):
    attempt(nvml.nvmlDeviceGetComputeRunningProcesses, index)
""",
    ) == ["fine", "GPU is lost", "fine", "GPU is lost", "fine", "GPU is lost", "fine"]


def test_fresh_process(fake: FakeNvml) -> None:
    """A new process finds the fake by LD_LIBRARY_PATH, and must initialise it first."""
    assert run(
        fake,
        """
nvml._LoadNvmlLibrary()
for call in (nvml.nvmlDeviceGetCount, lambda: nvml.nvmlDeviceGetHandleByIndex(0)):
    try:
        call()
    except nvml.NVMLError_Uninitialized as error:
        print(error)
nvml.nvmlInit()
print(nvml.nvmlDeviceGetCount())
nvml.nvmlShutdown()
""",
    ) == ["Uninitialized", "Uninitialized", "8"]


def test_missing_description(fake: FakeNvml) -> None:
    """Without a description the fake does not pretend to be any machine."""
    fake.state.unlink()

    assert run(
        fake,
        """
try:
    nvml.nvmlInit()
except nvml.NVMLError_Unknown as error:
    print(error)
""",
    ) == ["Unknown Error"]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ("", []),
        ("1234:1073741824", [(1234, 1 << 30)]),
        ("1234:1073741824,999:unknown", [(1234, 1 << 30), (999, None)]),
        (",".join(f"{pid}:1" for pid in range(1, 41)), [(pid, 1) for pid in range(1, 41)]),
    ],
    ids=["none", "one", "unknown", "forty"],
)
def test_processes(
    machine: FakeNvml, processes: str, expected: list[tuple[int, int | None]]
) -> None:
    """Processes are listed per GPU, with None for a memory that the driver cannot tell."""
    machine.update({"gpu0.processes": processes})
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu(0))

    assert [(process.pid, process.usedGpuMemory) for process in found] == expected
    assert all(process.gpuInstanceId == 0xFFFFFFFF for process in found)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu(1)) == []


def test_unreadable_processes(machine: FakeNvml) -> None:
    """A process list that cannot be read is an error, not an idle GPU."""
    machine.update({"gpu0.processes": "1234"})

    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetComputeRunningProcesses(gpu(0))


def test_nvlink_lane_down(machine: FakeNvml) -> None:
    """One lane of one GPU is down, the others are up and go to a switch."""
    machine.update({"gpu2.nvlink.3": 0})

    def up(index: int) -> int:
        return sum(pynvml.nvmlDeviceGetNvLinkState(gpu(index), lane) for lane in range(18))

    assert [up(index) for index in range(4)] == [18, 18, 17, 18]
    assert pynvml.nvmlDeviceGetNvLinkState(gpu(2), 3) == 0
    assert pynvml.nvmlDeviceGetNvLinkVersion(gpu(2), 0) == 6  # NVML_NVLINK_VERSION_4_0
    assert (
        pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu(2), 0)
        == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    )


def test_p2p_per_pair(machine: FakeNvml) -> None:
    """The status of a pair holds in both directions, for one capability."""
    machine.update({"p2p.0.1.nvlink": 4})

    def status(one: int, other: int, capability: int) -> object:
        return pynvml.nvmlDeviceGetP2PStatus(gpu(one), gpu(other), capability)

    assert status(0, 1, NVLINK) == status(1, 0, NVLINK) == 4
    assert status(0, 2, NVLINK) == status(0, 1, READ) == pynvml.NVML_P2P_STATUS_OK


def test_p2p_without_nvlink(machine: FakeNvml) -> None:
    """Boards without NVLink read from each other over PCIe only."""
    machine.write(L40S)

    assert pynvml.nvmlDeviceGetP2PStatus(gpu(0), gpu(1), READ) == 0
    assert pynvml.nvmlDeviceGetP2PStatus(gpu(0), gpu(1), NVLINK) == 5


def test_topology(machine: FakeNvml) -> None:
    """The GPUs hang on two sockets, four on each."""
    machine.write(H100)
    levels = [pynvml.nvmlDeviceGetTopologyCommonAncestor(gpu(2), gpu(i)) for i in range(8)]

    assert levels == [40, 40, 0, 40, 50, 50, 50, 50]
    nodes = [pynvml.nvmlDeviceGetMemoryAffinity(gpu(i), 1, 0)[0] for i in range(8)]
    assert nodes == [1] * 4 + [2] * 4


def test_fabric(machine: FakeNvml) -> None:
    """The fabric of an H100 is ready until the description says otherwise."""
    machine.update({"gpu1.fabric.state": 2, "gpu2.fabric.health": 1})

    assert [fabric(index).state for index in range(3)] == [3, 2, 3]
    assert [fabric(index).healthMask for index in range(3)] == [2, 2, 1]
    assert fabric(0).status == 0


def test_fabric_before_hopper(machine: FakeNvml) -> None:
    """Older boards have no fabric to ask about."""
    machine.write(A100)

    with pytest.raises(pynvml.NVMLError_NotSupported):
        fabric(0)


def test_health(machine: FakeNvml) -> None:
    """Error counters, remapped rows and clock reasons are told per GPU."""
    machine.update(
        {
            "gpu1.ecc.uncorrected.volatile": 7,
            "gpu1.rows.pending": 1,
            "gpu1.clocks.reasons": 0x48,
        }
    )

    assert [pynvml.nvmlDeviceGetTotalEccErrors(gpu(i), 1, 0) for i in (0, 1)] == [0, 7]
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu(1), 1, 1) == 0
    assert pynvml.nvmlDeviceGetRemappedRows(gpu(1)) == (0, 0, 1, 0)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu(1)) == 0x48


def test_field_values(machine: FakeNvml) -> None:
    """Each field carries its own status."""
    machine.update({"gpu1.field.230": 2})
    known, unknown = pynvml.nvmlDeviceGetFieldValues(gpu(1), [230, 231])

    assert (known.nvmlReturn, known.value.uiVal) == (0, 2)
    assert unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_mig(machine: FakeNvml) -> None:
    """A slice has an identity and memory of its own, and the rest from its GPU."""
    machine.write(H100_MIG, {"gpu1.mig1.processes": "42:7"})
    parent = gpu(1)
    parts = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index) for index in range(2)]
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(parts[1]))
    owner = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(by_uuid)
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(by_uuid)

    assert pynvml.nvmlDeviceGetMigMode(parent) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(parent) == 7
    assert [pynvml.nvmlDeviceGetMemoryInfo(part).total >> 20 for part in parts] == [40448] * 2
    assert pynvml.nvmlDeviceGetMemoryInfo(parent).total >> 20 == 81559
    assert pynvml.nvmlDeviceGetName(parts[0]) == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert pynvml.nvmlDeviceGetUUID(parts[0]).startswith("MIG-")
    assert pynvml.nvmlDeviceGetIndex(owner) == 1
    assert [pynvml.nvmlDeviceGetIndex(part) for part in parts] == [0, 1]
    assert pynvml.nvmlDeviceIsMigDeviceHandle(by_uuid).value == 1
    assert pynvml.nvmlDeviceGetGpuInstanceId(by_uuid) == 2
    assert (process.pid, process.gpuInstanceId, process.computeInstanceId) == (42, 2, 0)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(parts[0]) == []
    assert pynvml.nvmlDeviceGetCudaComputeCapability(by_uuid) == (9, 0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetUtilizationRates(parent)


@pytest.mark.parametrize(
    ("profile", "index", "error"),
    [
        (H100_MIG, 2, pynvml.NVMLError_NotFound),
        (H100_MIG, 7, pynvml.NVMLError_InvalidArgument),
        (H100, 0, pynvml.NVMLError_NotSupported),
        (L40S, 0, pynvml.NVMLError_NotSupported),
    ],
    ids=["empty-place", "no-place", "mig-off", "no-mig"],
)
def test_no_such_slice(
    machine: FakeNvml, profile: Profile, index: int, error: type[Exception]
) -> None:
    """A missing slice is told from an impossible one, and from a GPU without MIG."""
    machine.write(profile)

    with pytest.raises(error):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu(0), index)


def test_xid_event(machine: FakeNvml) -> None:
    """An XID is reported once, and only if it happens while somebody watches."""
    machine.update({"gpu4.xid": 48})
    events = register(4)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 10)

    later = threading.Timer(0.05, machine.update, args=({"gpu4.xid": 79},))
    later.start()
    event = pynvml.nvmlEventSetWait_v2(events, 5000)
    later.join()

    assert (event.eventType, event.eventData) == (XID, 79)
    assert pynvml.nvmlDeviceGetIndex(event.device) == 4
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 10)
    pynvml.nvmlEventSetFree(events)
