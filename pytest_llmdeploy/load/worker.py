"""The process that sends requests and takes their times; nothing else runs in it.

Run as a module by `load.crew`: jobs come in by its standard input, reports go out by its standard
output. When the input closes, whoever started it is gone, and it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

from pytest_llmdeploy.load.client import Client
from pytest_llmdeploy.load.jobs import (
    HEAD_BYTES,
    READY,
    Abandon,
    Job,
    Report,
    StopSending,
    length,
    packed,
    unpacked,
)
from pytest_llmdeploy.load.prompts import Prompt, Prompts
from pytest_llmdeploy.load.samples import Sample

_PRIORITY = -10
_REPORT_SECONDS = 0.05
_TICK_SECONDS = 0.005
_HEAR_SECONDS = 0.25
# A timer of the loop fires up to a millisecond late. Where requests are rare, the last stretch
# before one is due is spent asking the clock.
_CLOSE_SECONDS = 0.0015
_RARE_SECONDS = 0.01


@dataclass
class _Shift:
    """One job being done."""

    job: Job
    outbox: asyncio.StreamWriter
    ended: list[tuple[int, Sample]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    flying: set[asyncio.Task[None]] = field(default_factory=set)
    heard: float = 0.0

    def __post_init__(self) -> None:
        job = self.job
        self.client = Client(job.endpoint, job.workload.path, job.workload.patience.seconds)
        self.prompts = Prompts(job.workload, job.model, job.vocab, job.nonce)
        self.numbers = count(job.first, job.step)
        self.stopped = self.is_full = False
        self.reported = (time.perf_counter(), time.process_time())

    async def run(self) -> None:
        loops = (self._tick(), self._tell(), self._hear())
        background = [asyncio.create_task(loop) for loop in loops]
        with _quiet_collector():
            self.sender = asyncio.create_task(self._send())
            with contextlib.suppress(asyncio.CancelledError):
                await self.sender
            while self.flying:
                await asyncio.wait(self.flying)
        for task in background:
            task.cancel()
        await self.client.close()
        self._report(is_done=True)

    def stop(self) -> None:
        self.stopped = True
        if not self.job.places:
            self.sender.cancel()

    def abandon(self) -> None:
        self.stop()
        for task in self.flying:
            task.cancel()

    async def _send(self) -> None:
        if self.job.places:
            await self._wait_until(self.job.start)
            for _ in range(self.job.places):
                self._fly(self._place())
            return
        gap = _mean_gap(self.job.schedule)
        for number, due in self.job.schedule:
            # Made while there is time: before waiting, not when the request is due.
            prompt = self.prompts.at(number)
            await self._wait_until(due, precisely=gap > _RARE_SECONDS)
            if len(self.flying) >= self.job.at_once:
                self.is_full = True
                return
            self._fly(self._request(number, due, prompt))

    async def _place(self) -> None:
        """One place of a closed loop: the next request as soon as the last one has ended."""
        while not self.stopped and time.perf_counter() < self.job.until:
            number = next(self.numbers)
            if number >= self.job.most:
                return
            prompt = self.prompts.at(number)
            await self._request(number, time.perf_counter(), prompt)

    async def _request(self, number: int, due: float, prompt: Prompt) -> None:
        sample = await self.client.send(prompt, due)
        self.ended.append((number, sample))

    def _fly(self, flight: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(flight)
        self.flying.add(task)
        task.add_done_callback(self.flying.discard)

    async def _wait_until(self, moment: float, *, precisely: bool = False) -> None:
        close = _CLOSE_SECONDS if precisely else 0.0
        while (left := moment - time.perf_counter()) > 0:  # noqa: ASYNC110 - a time, not an event
            await asyncio.sleep(left - close if left > close else 0)

    async def _tick(self) -> None:
        while True:
            wanted = time.perf_counter() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self.lags.append(time.perf_counter() - wanted)

    async def _hear(self) -> None:
        while True:
            await asyncio.sleep(_HEAR_SECONDS)
            self.heard = self.client.heard

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._report()

    def _report(self, *, is_done: bool = False) -> None:
        then, used = self.reported
        self.reported = now, uses = time.perf_counter(), time.process_time()
        busy = (uses - used) / max(now - then, 1e-9)
        report = Report(
            ended=self.ended,
            lags=self.lags,
            busy=busy,
            heard=self.heard,
            is_full=self.is_full,
            is_done=is_done,
        )
        self.ended, self.lags = [], []
        self.outbox.write(packed(report))


def _mean_gap(schedule: Sequence[tuple[int, float]]) -> float:
    """Seconds between two requests."""
    return (schedule[-1][1] - schedule[0][1]) / len(schedule) if schedule else 0.0


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection while times are taken."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def _work() -> None:
    inbox, outbox = await _pipes()
    outbox.write(packed(READY))
    shift: _Shift | None = None
    doing: asyncio.Task[None] | None = None
    while True:
        try:
            message = unpacked(await inbox.readexactly(length(await inbox.readexactly(HEAD_BYTES))))
        except asyncio.IncompleteReadError:
            os._exit(0)
        match message:
            case Job():
                if doing is not None:
                    await doing
                shift = _Shift(message, outbox)
                doing = asyncio.create_task(shift.run())
            case StopSending() if shift is not None:
                shift.stop()
            case Abandon() if shift is not None:
                shift.abandon()


def _ask_for_priority() -> None:
    """On a machine that the server keeps busy, stamps should not wait for a turn. Where it is not
    allowed, the run does without, and its lags are measured.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        # Linux weighs sessions against each other first, and this process has its own.
        Path("/proc/self/autogroup").write_text(str(_PRIORITY), encoding="ascii")


async def _pipes() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Standard input and output as streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout.buffer
    )
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


if __name__ == "__main__":
    _ask_for_priority()
    uvloop.run(_work())
