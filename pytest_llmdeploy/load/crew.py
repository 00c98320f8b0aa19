"""The worker processes that send requests, as the run sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest_llmdeploy
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
from pytest_llmdeploy.spec import Workload

# What one core follows without being late: the fidelity benchmark goes to 50,000 events/s.
_EVENTS_PER_WORKER = 30_000
_STREAMS_PER_WORKER = 2_000
_MOST_SAID_BYTES = 1024**2


class WorkerDiedError(Exception):
    """A worker process ended by itself; the text is the last thing it said."""


class Crew:
    """Worker processes; they end with the `async with` block, and with this process."""

    def __init__(self, workers: Sequence[asyncio.subprocess.Process], said: BinaryIO) -> None:
        self._said = said
        self._workers = workers
        self._reports: asyncio.Queue[Report | WorkerDiedError] = asyncio.Queue()
        self._ready = asyncio.Semaphore(0)
        self._busy: Sequence[asyncio.subprocess.Process] = ()
        self._readers = [asyncio.create_task(self._read(worker)) for worker in workers]

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, size: int) -> AsyncIterator[Crew]:
        with tempfile.TemporaryFile() as said:
            crew = cls(await asyncio.gather(*(_start(said) for _ in range(size))), said)
            try:
                await crew._all_ready()
                yield crew
            finally:
                await crew.close()

    async def _all_ready(self) -> None:
        for _ in self._workers:
            await self._ready.acquire()

    async def begin(self, jobs: Sequence[Job]) -> None:
        """Gives each job to a worker."""
        self._busy = self._workers[: len(jobs)]
        for worker, job in zip(self._busy, jobs, strict=True):
            await _tell(worker, job)

    async def reports(self) -> AsyncIterator[Report]:
        """What the workers tell, until all jobs that were begun are done.

        Raises:
            WorkerDiedError: when one of them can tell nothing more.
        """
        working = len(self._busy)
        while working:
            report = await self._reports.get()
            if isinstance(report, WorkerDiedError):
                raise report
            working -= report.is_done
            yield report

    async def stop_sending(self) -> None:
        for worker in self._busy:
            await _tell(worker, StopSending())

    async def abandon(self) -> None:
        for worker in self._busy:
            await _tell(worker, Abandon())

    async def give_up_after(self, seconds: float, listener: asyncio.Task[None]) -> str:
        """Lets what is in flight end for so long, while `listener` hears of it. What went wrong
        with the client.
        """
        await asyncio.wait({listener}, timeout=seconds)
        await self.abandon()
        try:
            await listener
        except WorkerDiedError as error:
            return str(error)
        return ""

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        for worker in self._workers:
            await worker.wait()

    async def _read(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None  # noqa: S101 - it is a pipe
        while True:
            try:
                head = await worker.stdout.readexactly(HEAD_BYTES)
                report = unpacked(await worker.stdout.readexactly(length(head)))
            except asyncio.IncompleteReadError:
                self._reports.put_nowait(WorkerDiedError(self._last_words()))
                self._ready.release()
                return
            if report == READY:
                self._ready.release()
            else:
                self._reports.put_nowait(report)

    def _last_words(self) -> str:
        self._said.seek(0)
        said = self._said.read(_MOST_SAID_BYTES).decode("utf-8", "replace").strip().splitlines()
        return f"a worker process of the client ended: {said[-1] if said else 'it said nothing'}"


def size(workload: Workload, cores: int | None = None) -> int:
    """How many workers a workload takes; at least one core is left to everything else."""
    if workload.rate is not None:
        wanted = workload.rate * workload.mean_output / _EVENTS_PER_WORKER
    else:
        wanted = (workload.concurrency or 1) / _STREAMS_PER_WORKER
    most = max(1, (cores or len(os.sched_getaffinity(0))) - 1)
    return min(most, max(1, -int(-wanted // 1)))


async def _start(said: BinaryIO) -> asyncio.subprocess.Process:
    # Not from the current folder, which may hold anybody's `queue.py`.
    package = str(Path(pytest_llmdeploy.__file__).parent.parent)
    paths = [path for path in (os.environ.get("PYTHONPATH"), package) if path]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "pytest_llmdeploy.load.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=said,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        # Ctrl-C is for the run, which tells the workers what follows from it.
        start_new_session=True,
    )


async def _tell(worker: asyncio.subprocess.Process, message: object) -> None:
    assert worker.stdin is not None  # noqa: S101 - it is a pipe
    with contextlib.suppress(ConnectionError):
        worker.stdin.write(packed(message))
        await worker.stdin.drain()
