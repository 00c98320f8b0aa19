"""Looks at devices while something else runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from pytest_llmdeploy.probes.devices import Devices
from pytest_llmdeploy.probes.recording import Recording

INTERVAL_SECONDS = 1.0
# A device that hangs is timed out by who reads it; nobody waits for the last look for longer.
_PATIENCE_SECONDS = 10.0


class Sampler:
    """A thread that looks at the devices as long as its `with` block runs: at its start, every
    second, and at its end. A look that takes long delays the next one; none is made up for.
    """

    def __init__(self, read: Callable[[], Devices]) -> None:
        self._read = read
        self._looks: list[Devices] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device sampler", daemon=True)
        self._origin = 0.0

    def __enter__(self) -> Self:
        self._origin = time.time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_PATIENCE_SECONDS)

    @property
    def recording(self) -> Recording:
        """What was seen so far."""
        return Recording(tuple(self._looks), self._origin)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            self._look()
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            if self._ended.wait(due - time.monotonic()):
                break
        self._look()

    def _look(self) -> None:
        at = time.time()
        try:
            look = self._read()
        except Exception as error:  # noqa: BLE001 - a thread that died would look no more
            look = Devices((), "the devices", f"error: {type(error).__name__}: {error}")
        self._looks.append(replace(look, at=at))
