"""The worker processes, from start to end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence

import psutil
import pytest

from pytest_llmdeploy.load.crew import Crew, WorkerDiedError, size
from pytest_llmdeploy.load.floor import measure_floor
from pytest_llmdeploy.load.jobs import Job
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Standin


def job(standin: Standin, schedule: Sequence[tuple[int, float]]) -> Job:
    return Job(
        endpoint=Endpoint(standin.url),
        workload=workload(),
        model=MODEL,
        vocab=VOCAB,
        nonce=1,
        schedule=schedule,
    )


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "pytest_llmdeploy.load.worker" in process.cmdline()
    except psutil.Error:
        return False


async def ended(crew: Crew) -> AsyncIterator[tuple[int, Sample]]:
    async for report in crew.reports():
        for item in report.ended:
            yield item


def test_each_worker_sends_its_own_at_the_exact_times(standin: Standin) -> None:
    """Two workers send what one would, when it is due, and tell the numbers they were given."""

    async def run() -> dict[int, Sample]:
        async with Crew.of(2) as crew:
            origin = time.perf_counter() + 0.2
            times = [(number, origin + number / 50) for number in range(40)]
            await crew.begin([job(standin, times[worker::2]) for worker in range(2)])
            found = {number: sample async for number, sample in ended(crew)}
            assert {n: s.due for n, s in found.items()} == dict(times)
        return found

    found = asyncio.run(run())
    assert all(sample.is_ok for sample in found.values())
    lateness = sorted(sample.sent - sample.due for sample in found.values())
    assert 0 <= lateness[0] <= lateness[20] < 0.01
    assert workers() == []


def test_a_worker_that_is_killed_is_noticed(standin: Standin) -> None:
    """The run is told at once; it does not wait for what can't come any more."""

    async def run() -> None:
        async with Crew.of(1) as crew:
            await crew.begin([job(standin, [(0, time.perf_counter() + 60)])])
            os.kill(workers()[0].pid, signal.SIGKILL)
            async for _ in crew.reports():
                pass

    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="a worker process of the client ended"):
        asyncio.run(run())
    assert time.monotonic() - began < 10


def test_workers_end_with_the_block(standin: Standin) -> None:
    """Whatever goes wrong inside, and whatever is in flight."""
    standin.configure(ttft_ms=60_000)

    async def run() -> None:
        async with Crew.of(2) as crew:
            assert len(workers()) == 2
            await crew.begin([job(standin, [(0, time.perf_counter())])])
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(run())
    assert workers() == []


def test_what_is_abandoned_is_unfinished(standin: Standin) -> None:
    """A request in flight that is given up is told of like every other."""
    standin.configure(ttft_ms=60_000)

    async def run() -> list[str]:
        async with Crew.of(1) as crew:
            await crew.begin([job(standin, [(0, time.perf_counter())])])
            while not standin.requests():  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)
            await crew.abandon()
            return [str(sample.outcome) async for _, sample in ended(crew)]

    assert asyncio.run(run()) == ["unfinished"]


@pytest.mark.parametrize(
    ("overrides", "cores", "expected"),
    [
        ({"rate": "8/s", "output_tokens": 128}, 64, 1),
        ({"rate": "500/s", "output_tokens": 200}, 64, 4),
        ({"rate": "500/s", "output_tokens": 200}, 3, 2),
        ({"rate": "500/s", "output_tokens": 200}, 1, 1),
        ({"concurrency": 128}, 64, 1),
        ({"concurrency": 5000}, 64, 3),
    ],
)
def test_size(overrides: dict[str, object], cores: int, expected: int) -> None:
    """As many as the events of an open loop, or the streams of a closed one, take; one core is
    left.
    """
    assert size(workload(**overrides), cores) == expected


def test_the_floor_is_what_the_client_adds() -> None:
    """Against a server that adds nothing, a request takes next to no time."""

    async def run() -> tuple[float, float, int]:
        async with Crew.of(1) as crew:
            floor = await measure_floor(crew, [workload()])
            assert floor is not None
            return floor.ttft_ms, floor.gap_ms, floor.requests

    ttft, gap, requests = asyncio.run(run())
    assert requests == 10
    assert 0 < ttft < 200
    assert 0 < gap < 200
