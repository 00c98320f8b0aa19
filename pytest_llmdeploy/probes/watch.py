"""Watches GPUs for XIDs: NVML tells them only to who waits for them."""

from __future__ import annotations

import ctypes
import threading
import time
from itertools import chain
from typing import Any

import pynvml

from pytest_llmdeploy.probes.devices import Devices
from pytest_llmdeploy.probes.nvml import FAULTS, problem, session
from pytest_llmdeploy.probes.xids import Xids

# The call waits in the driver, and can't be interrupted there.
_STEP_MS = 100
_PATIENCE_SECONDS = 5.0


class XidWatch:
    """A thread that waits for XIDs of these GPUs, from when this was made until it is closed. Of a
    GPU that can't be watched, what was seen has the `problem`; the others are watched all the same.
    """

    def __init__(self, devices: Devices) -> None:
        self._gpus = devices
        self._watched: dict[int, list[str]] = {}
        self._seen: dict[str, list[int]] = {}
        self._problems = [devices.problem] if devices.problem else []
        self._began = self._until = 0.0
        self._is_watching, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="XID watch", daemon=True)
        self._thread.start()
        if not self._is_watching.wait(_PATIENCE_SECONDS):
            self._problems.append("error: timed out: NVML does not begin to watch for events")

    def read(self) -> Xids:
        """What was seen so far."""
        until = self._until or time.monotonic()
        return Xids(
            {name: tuple(xids) for name, xids in self._seen.items()},
            tuple(chain.from_iterable(self._watched.values())),
            until - self._began if self._began else 0.0,
            problem="; ".join(dict.fromkeys(self._problems)),
        )

    def close(self) -> None:
        """Watches no longer; what was seen can still be read."""
        self._ended.set()
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self) -> None:
        try:
            with session():
                events = pynvml.nvmlEventSetCreate()
                try:
                    self._watch(events)
                finally:
                    pynvml.nvmlEventSetFree(events)
        except FAULTS as fault:
            self._problems.append(problem(fault))
        finally:
            self._until = time.monotonic()
            self._is_watching.set()

    def _watch(self, events: Any) -> None:
        for device in self._gpus:
            try:
                gpu = _gpu(pynvml.nvmlDeviceGetHandleByUUID(device.identity))
                if _address(gpu) not in self._watched:
                    kind = pynvml.nvmlEventTypeXidCriticalError
                    pynvml.nvmlDeviceRegisterEvents(gpu, kind, events)
                self._watched.setdefault(_address(gpu), []).append(device.name)
            except FAULTS as fault:
                self._problems.append(f"{problem(fault)} ({device.name})")
        self._began = time.monotonic()
        self._is_watching.set()
        while self._watched and not self._ended.is_set():
            self._wait(events)

    def _wait(self, events: Any) -> None:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, _STEP_MS)
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_TIMEOUT:
                raise
            return
        # By its handle: a GPU that fell off the bus no longer tells its UUID.
        for name in self._watched.get(_address(event.device), ["another GPU"]):
            self._seen.setdefault(name, []).append(int(event.eventData))


def _gpu(handle: Any) -> Any:
    """The GPU itself; of a MIG slice, the one that it is a part of: slices have no events."""
    try:
        return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    except pynvml.NVMLError:
        return handle


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
