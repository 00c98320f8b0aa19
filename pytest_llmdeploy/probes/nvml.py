"""NVML through nvidia-ml-py's `pynvml`: its session, its faults, and the driver behind it.

Every read is a value or a reason: unsupported, no permission, lost or error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pynvml

from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.patience import answers, timed_out

SOURCE = "NVML"
# Not an NVMLError: what pynvml raises where the driver is older than one of its calls.
FAULTS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)

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


@contextmanager
def session() -> Iterator[None]:
    """NVML, initialised. It counts its users: every thread that asks is one."""
    pynvml.nvmlInit()
    _stay_open()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


@cache
def _stay_open() -> None:
    """One user more, to the end of the process: when there is none, NVML closes every GPU, and to
    open them again takes longer than to read them.
    """
    pynvml.nvmlInit()


def problem(fault: Exception) -> str:
    """Why a read brought nothing."""
    code = getattr(fault, "value", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    if code in _ABSENT:
        return f"error: {_ABSENT[code]}"
    text = "function not found" if code == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND else str(fault)
    words = text.lower().replace("gpu", "GPU")
    return f"{_REASONS.get(code, 'error')}: NVML says {words}"


def read_driver() -> Driver:
    """The versions of the driver, and of the CUDA that it supports."""
    (found,) = answers({"NVML": _versions()}).values()
    return found[0] if found else Driver(problem=timed_out(SOURCE))


def _versions() -> Iterator[Driver]:
    try:
        with session():
            version = pynvml.nvmlSystemGetDriverVersion()
            try:
                # 12040 is CUDA 12.4.
                cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
                yield Driver(version, f"{cuda // 1000}.{cuda % 1000 // 10}")
            except pynvml.NVMLError_LibraryNotFound:
                # Here it is another library: a container may have been given NVML alone.
                yield Driver(version, problem="error: there is no CUDA driver here (libcuda.so.1)")
    except FAULTS as fault:
        yield Driver(problem=problem(fault))
