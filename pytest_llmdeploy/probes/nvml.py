"""GPUs as NVML sees them, through nvidia-ml-py's `pynvml`.

Every read is a value or a reason: unsupported, no permission, lost or error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, takewhile
from typing import Any

import pynvml

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "unsupported",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "unsupported",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission",
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
}
_ABSENT = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "there is no NVIDIA driver here (libnvidia-ml.so.1)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVML and the kernel driver differ: reboot",
}
_SOURCE = "NVML"
_P2P_OK = 0


class NvmlAbsentError(Exception):
    """NVML can't be used on this machine; the text says why."""


@contextmanager
def session() -> Iterator[None]:
    """NVML, initialised.

    Raises:
        NvmlAbsentError: when there is no driver, or it does not answer.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlAbsentError(_ABSENT.get(error.value, f"NVML does not start: {error}")) from None
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def read_gpus(indices: Sequence[int] | None = None) -> Devices:
    """The GPUs with these NVML indices, or all; a GPU that is lost is among them, unread."""
    try:
        with session():
            count = pynvml.nvmlDeviceGetCount()
            # As CUDA does: the first index that is no GPU ends the list.
            chosen = takewhile(
                lambda index: index < count, range(count) if indices is None else indices
            )
            return Devices(tuple(_device(index) for index in chosen), _SOURCE)
    except NvmlAbsentError as error:
        return Devices((), _SOURCE, problem=f"error: {error}")
    except pynvml.NVMLError as error:
        return Devices((), _SOURCE, problem=_problem(error))


def nvlink_pairs(groups: Iterable[Sequence[int]]) -> dict[str, Evidence]:
    """For every pair of GPUs within a group, 1 if they reach each other over NVLink, else 0.

    What vLLM itself asks before it uses its own all-reduce (nvmlDeviceGetP2PStatus).
    """
    try:
        with session():
            pairs = [pair for group in groups for pair in combinations(group, 2)]
            return {f"GPU {a} – GPU {b}": _pair(a, b) for a, b in pairs}
    except NvmlAbsentError as error:
        return {"devices": Evidence(None, "", _SOURCE, problem=f"error: {error}")}


def _pair(first: int, second: int) -> Evidence:
    def linked() -> float:
        status = pynvml.nvmlDeviceGetP2PStatus(
            pynvml.nvmlDeviceGetHandleByIndex(first),
            pynvml.nvmlDeviceGetHandleByIndex(second),
            pynvml.NVML_P2P_CAPS_INDEX_NVLINK,
        )
        return float(status == _P2P_OK)

    return _read("nvmlDeviceGetP2PStatus", "", linked)


def _device(index: int) -> Device:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        kind, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    except pynvml.NVMLError as error:
        unread = Evidence(None, "B", _SOURCE, time.time(), _problem(error))
        return Device(f"GPU {index}", "", "", unread, unread, unread)
    # Version 1 of this call counts what the driver keeps back as used.
    try:
        memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        memory = error

    def part(name: str) -> Evidence:
        def value() -> float:
            if isinstance(memory, pynvml.NVMLError):
                raise memory
            return float(getattr(memory, name))

        return _read("nvmlDeviceGetMemoryInfo_v2", "B", value)

    return Device(f"GPU {index}", uuid, kind, part("total"), part("used"), part("reserved"))


def _read(function: str, unit: str, read: Callable[[], float]) -> Evidence:
    source = f"{_SOURCE}: {function}"
    try:
        return Evidence(read(), unit, source, time.time())
    except pynvml.NVMLError as error:
        return Evidence(None, unit, source, time.time(), _problem(error))


def _problem(error: pynvml.NVMLError) -> str:
    return f"{_REASONS.get(error.value, 'error')}: NVML says {str(error).lower()}"
