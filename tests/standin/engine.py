"""An engine: a number of seats, the requests that wait for one, and what it counted."""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .answer import Answer
from .settings import Settings

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip


class Histogram:
    """Observations counted in buckets, as Prometheus wants them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Run:
    """One request in a seat."""

    answer: Answer
    settings: Settings
    ordinal: int
    arrived: float
    #: Why it ended, for vllm:request_success; None is the answer's own finish reason.
    outcome: str | None = None


class Engine:
    """Serves at most so many requests at once, first come first served."""

    def __init__(self, index: int, seats: int) -> None:
        self.index = index
        self.waiting = 0
        #: Tokens in the KV cache, for every running request.
        self.cached: dict[str, int] = {}
        self.totals: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.ttft = Histogram(TTFT_BUCKETS)
        self._limit = seats
        self._seats = asyncio.Semaphore(seats)

    def resize(self, seats: int) -> None:
        """Change the number of seats for the requests to come."""
        if seats != self._limit:
            self._limit = seats
            self._seats = asyncio.Semaphore(seats)

    @asynccontextmanager
    async def admit(self, answer: Answer, settings: Settings, ordinal: int) -> AsyncIterator[Run]:
        """Wait for a seat and hold it; who leaves early is counted as aborted."""
        run = Run(answer, settings, ordinal, asyncio.get_running_loop().time())
        # Bound here: `resize` may have exchanged the semaphore when the seat is given back.
        seats = self._seats
        try:
            await self._wait_for(seats)
        except asyncio.CancelledError:
            self.finished["abort"] += 1
            raise
        self.cached[answer.id] = len(answer.ask.prompt)
        try:
            yield run
        except (asyncio.CancelledError, ConnectionError):
            run.outcome = "abort"
            raise
        finally:
            self.finished[run.outcome or answer.finish] += 1
            del self.cached[answer.id]
            seats.release()

    async def _wait_for(self, seats: asyncio.Semaphore) -> None:
        self.waiting += 1
        try:
            await seats.acquire()
        finally:
            self.waiting -= 1

    async def spans(self, run: Run) -> AsyncIterator[tuple[int, int]]:
        """Yield (start, stop) of every chunk of tokens when it is due."""
        clock = asyncio.get_running_loop().time
        first = clock() + run.settings.ttft(run.ordinal)
        tpot = run.settings.tpot(run.ordinal)
        count, step = len(run.answer.tokens), run.settings.chunk_tokens
        for start in range(0, max(count, 1), step):
            stop = min(start + step, count)
            due = first + tpot * max(stop - 1, 0)
            await asyncio.sleep(max(due - clock(), 0))
            if start == 0:
                self._prefilled(run, clock() - run.arrived)
            self.totals["generation_tokens"] += stop - start
            self.cached[run.answer.id] += stop - start
            yield start, stop

    def _prefilled(self, run: Run, waited: float) -> None:
        prompt = len(run.answer.ask.prompt)
        self.ttft.observe(waited)
        self.totals["prompt_tokens"] += prompt
        self.totals["prefix_cache_queries"] += prompt
        self.totals["prefix_cache_hits"] += round(prompt * run.settings.prefix_hit_fraction)
        self.totals["num_preemptions"] += run.settings.preemptions(run.ordinal)

    def kv_usage(self, settings: Settings) -> float:
        """Return the share of the KV-cache blocks that running requests hold."""
        blocks = sum(-(-tokens // settings.block_size) for tokens in self.cached.values())
        return min(blocks / settings.num_gpu_blocks, 1.0)
