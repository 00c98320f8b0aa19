"""The fields of a GPU: which NVML call brings which of them, and how its answer is read."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.nvml import FAULTS, SOURCE, problem
from pytest_llmdeploy.probes.tenants import Tenant, Tenants

_ABSENT = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
# A MIG slice refuses in both ways what only its GPU can tell.
_REFUSED = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT)
# NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, which older versions of pynvml do not name.
_RECOVERY_ACTION = 230
# Its second version, by its older name where there is no other.
_FABRIC_INFO = getattr(pynvml, "c_nvmlGpuFabricInfo_v2_t", pynvml.c_nvmlGpuFabricInfoV_t)
_NUMA_WORDS = 16
_MOST_LANES = 64
_DEGRADED, _NOT_DEGRADED = 1, 2


def _not_supported() -> Exception:
    fault: Exception = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return fault


def _clocks_event_reasons(handle: Any) -> int:
    try:
        reasons: int = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError_FunctionNotFound:
        # What drivers before 535 call it.
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return reasons


def _recovery_action(handle: Any) -> int:
    (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION])
    # A driver that does not know the field says so of the field, and not of the call.
    if field.nvmlReturn in _REFUSED:
        raise _not_supported()
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(field.nvmlReturn)
    return int(field.value.uiVal)


def _numa_node(handle: Any) -> int:
    """Unlike nvmlDeviceGetNumaNodeId, which is for memory that CPU and GPU share."""
    scope = pynvml.NVML_AFFINITY_SCOPE_NODE
    words = pynvml.nvmlDeviceGetMemoryAffinity(handle, _NUMA_WORDS, scope)
    nodes = [
        word * 64 + bit for word, bits in enumerate(words) for bit in range(64) if bits >> bit & 1
    ]
    if len(nodes) != 1:
        raise _not_supported()
    return nodes[0]


def _lanes(handle: Any) -> tuple[int, int]:
    """How many lanes it has, and how many of them are up."""
    states: list[int] = []
    for lane in range(_MOST_LANES):
        try:
            states.append(pynvml.nvmlDeviceGetNvLinkState(handle, lane))
        except pynvml.NVMLError as fault:
            if fault.value not in _REFUSED:
                raise
            break
    if not states:
        raise _not_supported()
    return len(states), states.count(1)


def _fabric(handle: Any) -> tuple[int, int]:
    info = _fabric_info(handle)
    # The driver writes one byte where pynvml reads four.
    return info.state & 0xFF, info.status


def _fabric_degraded(handle: Any) -> bool:
    bandwidth = _fabric_info(handle).healthMask & 3
    if bandwidth not in {_DEGRADED, _NOT_DEGRADED}:
        raise _not_supported()
    return bool(bandwidth == _DEGRADED)


def _fabric_info(handle: Any) -> Any:
    info = _FABRIC_INFO()
    pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return info


@dataclass(frozen=True, slots=True)
class _Call:
    """An NVML call by the end of its name, and what it brings, in order."""

    name: str
    fields: tuple[Field, ...]
    ask: Callable[[Any], Any]


_CALLS = (
    _Call(
        "UtilizationRates",
        (Field.UTILIZATION,),
        lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
    ),
    _Call(
        "Temperature",
        (Field.TEMPERATURE,),
        lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    ),
    _Call(
        "PowerUsage",
        (Field.POWER,),
        lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    ),
    _Call(
        "ClockInfo",
        (Field.SM_CLOCK,),
        lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
    ),
    _Call("CurrentClocksEventReasons", (Field.CLOCKS_EVENT_REASONS,), _clocks_event_reasons),
    _Call(
        "CurrPcieLinkGeneration",
        (Field.PCIE_GENERATION,),
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration,
    ),
    _Call(
        "TotalEccErrors",
        (Field.ECC_UNCORRECTED,),
        lambda handle: pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        ),
    ),
    _Call(
        "RemappedRows",
        (Field.ROWS_PENDING, Field.ROWS_FAILED),
        lambda handle: pynvml.nvmlDeviceGetRemappedRows(handle)[2:],
    ),
    _Call("FieldValues", (Field.RECOVERY_ACTION,), _recovery_action),
    _Call(
        "MaxPcieLinkGeneration",
        (Field.PCIE_MAX_GENERATION,),
        pynvml.nvmlDeviceGetMaxPcieLinkGeneration,
    ),
    _Call("CurrPcieLinkWidth", (Field.PCIE_WIDTH,), pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    _Call("MaxPcieLinkWidth", (Field.PCIE_MAX_WIDTH,), pynvml.nvmlDeviceGetMaxPcieLinkWidth),
    _Call("MemoryAffinity", (Field.NUMA_NODE,), _numa_node),
    _Call("NvLinkState", (Field.NVLINK_LANES, Field.NVLINK_LANES_UP), _lanes),
    _Call("GpuFabricInfoV", (Field.FABRIC_STATE, Field.FABRIC_STATUS), _fabric),
    _Call("GpuFabricInfoV", (Field.FABRIC_DEGRADED,), _fabric_degraded),
    _Call("ComputeMode", (Field.COMPUTE_MODE,), pynvml.nvmlDeviceGetComputeMode),
    _Call("PersistenceMode", (Field.PERSISTENCE_MODE,), pynvml.nvmlDeviceGetPersistenceMode),
    _Call("MigMode", (Field.MIG_MODE,), lambda handle: pynvml.nvmlDeviceGetMigMode(handle)[0]),
)


def read_fields(
    handles: Mapping[str, Any], fields: Collection[Field]
) -> Iterator[tuple[Field, Evidence]]:
    """These fields of a device. `handles` are its own and, of a MIG slice, then that of its GPU,
    which is asked for what the slice refuses, by what the source calls them.
    """
    for call in _CALLS:
        if not set(fields).isdisjoint(call.fields):
            yield from zip(call.fields, _answer(call, list(handles.items())), strict=True)


def _answer(call: _Call, handles: Sequence[tuple[str, Any]]) -> list[Evidence]:
    (whose, handle), *others = handles
    source, at = f"{whose}: nvmlDeviceGet{call.name}", time.time()
    try:
        answer = call.ask(handle)
    except FAULTS as fault:
        if others and getattr(fault, "value", None) in _REFUSED:
            return _answer(call, others)
        return [Evidence(None, name.unit, source, at, problem(fault)) for name in call.fields]
    values = answer if isinstance(answer, tuple | list) else (answer,)
    found = zip(call.fields, values, strict=True)
    return [Evidence(float(value), name.unit, source, at) for name, value in found]


def read_memory(handle: Any) -> dict[str, Evidence]:
    """The memory of a device: `total`, `used` and `reserved` by the driver."""
    source, at = f"{SOURCE}: nvmlDeviceGetMemoryInfo_v2", time.time()
    try:
        try:
            found = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            sizes = {"total": found.total, "used": found.used, "reserved": found.reserved}
        except pynvml.NVMLError_FunctionNotFound:
            # What drivers before 515 have; it can't tell the two apart.
            source = f"{SOURCE}: nvmlDeviceGetMemoryInfo, where what is reserved counts as used"
            found = pynvml.nvmlDeviceGetMemoryInfo(handle)
            sizes = {"total": found.total, "used": found.used, "reserved": 0}
    except pynvml.NVMLError as fault:
        unread = Evidence(None, "B", source, at, problem(fault))
        return dict.fromkeys(("total", "used", "reserved"), unread)
    return {name: Evidence(float(size), "B", source, at) for name, size in sizes.items()}


def read_tenants(handle: Any) -> Tenants:
    """The processes that compute on a device; those under MPS are listed apart."""
    try:
        found = list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except FAULTS as fault:
        return Tenants(problem=problem(fault))
    try:
        found += pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)
    except FAULTS as fault:
        if getattr(fault, "value", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) not in _ABSENT:
            return Tenants(problem=problem(fault))
    used = {process.pid: process.usedGpuMemory for process in reversed(found)}
    return Tenants(
        tuple(Tenant(pid, size, psutil.pid_exists(pid)) for pid, size in sorted(used.items()))
    )
