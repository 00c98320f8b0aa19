"""Runs a workload against a server: warm-up, measurement, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import aiohttp

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.load.arrivals import arrivals
from pytest_llmdeploy.load.backlog import Service, service
from pytest_llmdeploy.load.client import Client, new_session
from pytest_llmdeploy.load.prompts import Prompt, prompts
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.load.stopping import StoppingRule
from pytest_llmdeploy.load.traffic import Traffic, WorkloadTraffic
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.probes.metrics import quick_total
from pytest_llmdeploy.spec import Spec, Workload

_WARMUP_REQUESTS = 8
_DRAIN_SECONDS = 60.0
_DYING_SECONDS = 15.0
_WATCH_SECONDS = 0.25
# A trend of the backlog is not looked for in less than this.
_FIRST_LOOK_SECONDS = 8.0
_NEXT_LOOK = 1.5
# So many failures in a row, without one success, and nobody is there any more.
_HOPELESS = 50
_DEFAULT_VOCAB = 1000
_MOST_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load. `death` says why it can serve no more, and is empty while it can; None
    where that can't be known.
    """

    endpoint: Endpoint
    model: str
    vocab: int = _DEFAULT_VOCAB
    death: Callable[[], str] | None = None
    progress: Callable[[str], None] = lambda _text: None


def run_workloads(spec: Spec, target: Target) -> Traffic:
    """The traffic of all workloads of `spec`, one after the other."""
    served: dict[str, WorkloadTraffic] = {}
    for workload in spec.workloads:
        served[workload.name] = asyncio.run(_Run(workload, spec.confidence, target).run())
    return Traffic(served)


@dataclass
class _Run:
    workload: Workload
    confidence: float
    target: Target
    ended: list[tuple[int, Sample]] = field(default_factory=list)
    intervals: list[tuple[float, float]] = field(default_factory=list)
    interrupted: str = ""
    in_flight: dict[int, float] = field(default_factory=dict)
    failures_in_a_row: int = 0
    measured: int = 0
    next_look: float = _FIRST_LOOK_SECONDS
    service: Service | None = None

    def __post_init__(self) -> None:
        self.rule = StoppingRule(self.workload, self.confidence)
        self.stop = asyncio.Event()
        self.prompts = prompts(self.workload, self.target.model, self.target.vocab)
        self.peak = Evidence(None, "sequences", "vllm:num_requests_running")
        self.preempted = Evidence(None, "preemptions", "vllm:num_preemptions_total")
        self.preempted_before: float | None = None

    async def run(self) -> WorkloadTraffic:
        async with new_session(self.target.endpoint) as session:
            self.client = Client(session, f"{self.target.endpoint.url}/v1/completions")
            await self._warm_up()
            await self._watch_server(session)
            self.origin, self.began_at = time.perf_counter(), time.time()
            with _quiet_collector():
                async with self._watching(session):
                    pending = await self._send()
                self.stop.set()
                self.end = min(time.perf_counter(), self._deadline)
                if self.rule.keeps_up is None:
                    self.service = self._service(self.end)
                await self._drain(pending)
            # All may have been decided by the very failures of a server that was dying.
            if self.interrupted or self.failures_in_a_row:
                self.interrupted = await self._last_words() or self.interrupted
            await self._watch_server(session)
        return self._traffic()

    @property
    def _start(self) -> float:
        return self.origin + self.workload.warmup.seconds

    @property
    def _deadline(self) -> float:
        return self.origin + self.workload.max_duration.seconds

    async def _warm_up(self) -> None:
        """A few requests of the same kind, not measured: the first ones compile and allocate."""
        due = time.perf_counter()
        batch = [self.client.send(next(self.prompts), due) for _ in range(_WARMUP_REQUESTS)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*batch), _DRAIN_SECONDS)

    async def _send(self) -> set[asyncio.Task[None]]:
        if self.workload.concurrency is not None:
            return await self._closed_loop(self.workload.concurrency)
        return await self._open_loop()

    async def _open_loop(self) -> set[asyncio.Task[None]]:
        tasks: set[asyncio.Task[None]] = set()
        schedule = arrivals(self.workload)
        self.origin = time.perf_counter()
        for offset in schedule:
            # Made while there is time: before waiting, not when the request is due.
            prompt, due = next(self.prompts), self.origin + offset
            if await self._stopped_before(due):
                break
            task = asyncio.create_task(self._request(prompt, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            await self._stopped_before(self._deadline)
        return tasks

    async def _closed_loop(self, concurrency: int) -> set[asyncio.Task[None]]:
        async def place() -> None:
            while not self.stop.is_set() and time.perf_counter() < self._deadline:
                await self._request(next(self.prompts), time.perf_counter())

        tasks = {asyncio.create_task(place()) for _ in range(concurrency)}
        await self._stopped_before(self._deadline)
        return tasks

    async def _stopped_before(self, moment: float) -> bool:
        """Waits until `moment` on the monotonic clock; True when the run was stopped first."""
        left = moment - time.perf_counter()
        if left <= 0:
            await asyncio.sleep(0)
            return self.stop.is_set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), left)
        return self.stop.is_set()

    async def _request(self, prompt: Prompt, due: float) -> None:
        index = -1
        if due >= self._start:
            index = self.measured
            self.measured += 1
        self.in_flight[id(prompt)] = due
        sample = await self.client.send(prompt, due)
        del self.in_flight[id(prompt)]
        self._ended(index, sample)

    def _ended(self, index: int, sample: Sample) -> None:
        self.intervals.append((sample.due, sample.ended))
        if sample.outcome is not Outcome.UNFINISHED:
            self.failures_in_a_row = 0 if sample.is_ok else self.failures_in_a_row + 1
        if self.failures_in_a_row >= _HOPELESS and not self.stop.is_set():
            self._interrupt(f"{_HOPELESS} requests in a row failed: {sample.detail}")
        if index >= 0:
            self.ended.append((index, sample))
            self.rule.finished(index, sample)

    def _interrupt(self, reason: str) -> None:
        self.interrupted = reason
        self.stop.set()

    async def _last_words(self) -> str:
        """What the server died of, if it did: it answers with errors for a while before it ends."""
        for _ in range(round(_DYING_SECONDS / _WATCH_SECONDS) if self.target.death else 0):
            if death := self._death():
                return death
            await asyncio.sleep(_WATCH_SECONDS)
        return ""

    def _death(self) -> str:
        return self.target.death() if self.target.death else ""

    async def _drain(self, pending: set[asyncio.Task[None]]) -> None:
        """Lets what is in flight end; what does not is cancelled and counts as unfinished."""
        tasks = set(pending)
        if tasks and not self.interrupted:
            await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _watching(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        watcher = asyncio.create_task(self._watch(session))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        for tick in count():
            await asyncio.sleep(_WATCH_SECONDS)
            if not self.interrupted and (death := self._death()):
                self._interrupt(death)
            await self._watch_server(session)
            self._watch_backlog()
            if self.rule.is_decided:
                self.stop.set()
            if tick % round(1 / _WATCH_SECONDS) == 0:
                self.target.progress(self._state())

    def _watch_backlog(self) -> None:
        """Looks at the backlog now and then, ever more rarely: looking all the time finds a bad
        moment in every run. One good look passes; it takes two bad ones in a row to fail.
        """
        seconds = time.perf_counter() - self._start
        if (
            not self.workload.require.keeps_up
            or seconds < self.next_look
            or self.rule.keeps_up is not None
        ):
            return
        self.next_look *= _NEXT_LOOK
        before, self.service = self.service, self._service(self._start + seconds)
        answers = {look.keeps_up if look else None for look in (before, self.service)}
        if self.service and (self.service.keeps_up or answers == {False}):
            self.rule.keeps_up = self.service.keeps_up

    def _service(self, until: float) -> Service | None:
        if not self.ended or until <= self._start:
            return None
        completed = sum(sample.is_ok for _, sample in self.ended) / len(self.ended)
        intervals = [*self.intervals, *((due, until) for due in self.in_flight.values())]
        rate = self.measured / (until - self._start)
        return service(completed, rate, intervals, self._start, until)

    async def _watch_server(self, session: aiohttp.ClientSession) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            url = f"{self.target.endpoint.url}/metrics"
            text = b""
            async with session.get(url, timeout=timeout) as response:
                async for part in response.content.iter_any():
                    text += part
                    if len(text) > _MOST_BYTES:
                        return
            running = quick_total(text, b"vllm:num_requests_running")
            preempted = quick_total(text, b"vllm:num_preemptions_total")
        except (aiohttp.ClientError, OSError, ValueError):
            return
        now = time.time()
        if running is not None:
            self.rule.running_peak = max(self.rule.running_peak, running)
            self.peak = Evidence(self.rule.running_peak, self.peak.unit, self.peak.source, now)
        if preempted is not None:
            if self.preempted_before is None:
                self.preempted_before = preempted
            more = preempted - self.preempted_before
            self.preempted = Evidence(more, self.preempted.unit, self.preempted.source, now)

    def _state(self) -> str:
        words = {True: "PASS", False: "FAIL", None: "deciding …"}
        seconds = time.perf_counter() - self.origin
        answers = "   ".join(
            f"{name} {words[answer]}" for name, answer in self.rule.answers() if name != "census"
        )
        return f"{self.workload.name}  {self.measured:,} requests in {seconds:.0f} s   {answers}"

    def _traffic(self) -> WorkloadTraffic:
        unread = "error: /metrics did not report it"
        return WorkloadTraffic(
            workload=self.workload,
            confidence=self.confidence,
            samples=[sample for _, sample in sorted(self.ended, key=lambda item: item[0])],
            start=self._start,
            end=max(self.end, self._start + 1e-9),
            began_at=self.began_at,
            running_peak=_known(self.peak, unread),
            preempted=_known(self.preempted, unread),
            interrupted=self.interrupted,
            service=self.service,
        )


def _known(evidence: Evidence, problem: str) -> Evidence:
    if evidence.value is not None:
        return evidence
    return Evidence(None, evidence.unit, evidence.source, evidence.at, problem)


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
