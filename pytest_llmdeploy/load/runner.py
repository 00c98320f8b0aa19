"""Runs workloads against a server: calibration, warm-up, measurement, drain."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.load.arrivals import arrivals
from pytest_llmdeploy.load.backlog import Service, service
from pytest_llmdeploy.load.breakdown import Breakdown
from pytest_llmdeploy.load.claims import Before, Budget
from pytest_llmdeploy.load.counters import PREEMPTIONS, RUNNING, Counted, Counters, metrics_page
from pytest_llmdeploy.load.crew import Crew, size
from pytest_llmdeploy.load.engines import Dealing
from pytest_llmdeploy.load.floor import Floor, measure_floor
from pytest_llmdeploy.load.jobs import Job
from pytest_llmdeploy.load.preparation import PreparationError, prepared
from pytest_llmdeploy.load.samples import UNANSWERED, Outcome, Sample
from pytest_llmdeploy.load.stopping import StoppingRule
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.load.tokenizer import ServerTokenizer, TokenizerError
from pytest_llmdeploy.load.traffic import Traffic, WorkloadTraffic
from pytest_llmdeploy.load.trial import at_rate
from pytest_llmdeploy.load.validity import Conditions, faults, lateness
from pytest_llmdeploy.load.warm_up import WarmUp, warm_up
from pytest_llmdeploy.spec import Spec, Workload

_WARMUP_REQUESTS = 8
_DRAIN_SECONDS = 60.0
_DYING_SECONDS = 15.0
_WATCH_SECONDS = 0.25
# A gauge that is read later than this is none of that moment, nor is a server healthy then.
_ANSWER_SECONDS = 3.0
# Long enough for the workers to have their schedule, and their first prompts, before it begins.
_LEAD_SECONDS = 0.1
# A trend of the backlog is not looked for in less than this.
_FIRST_LOOK_SECONDS = 8.0
_NEXT_LOOK = 1.5
# So many failures in a row, without one success, and nobody is there any more.
_HOPELESS = 50
# The keys of the spec that end traffic early.
_MAX_REQUESTS, _MAX_CONCURRENCY = "attach.max_requests", "attach.max_concurrency"


def run_workloads(
    spec: Spec, target: Target, earlier: Mapping[str, Before] | None = None
) -> Traffic:
    """The traffic of all workloads of `spec`, one after the other. `earlier` are the latencies of
    an earlier run by workload, of those that must be no worse.
    """
    budget, replicas = Budget.of(spec), max(1, len(target.replicas))
    dealing = Dealing(spec.require.balance, spec.parallel.data, replicas, budget)
    return asyncio.run(_run_workloads(spec.workloads, budget, target, dealing, earlier or {}))


def run_trial(workload: Workload, budget: Budget, target: Target) -> WorkloadTraffic:
    """The traffic of one workload, until one of its requirements fails or all are decided."""
    return asyncio.run(_run_trial(workload, budget, target))


async def _run_workloads(
    workloads: Sequence[Workload],
    budget: Budget,
    target: Target,
    dealing: Dealing,
    earlier: Mapping[str, Before],
) -> Traffic:
    served: dict[str, WorkloadTraffic] = {}
    trials = {w.name: at_rate(w, c) for w in workloads if (c := w.require.capacity) is not None}
    everything = [*workloads, *trials.values()]
    async with Crew.of(max(map(size, everything), default=0)) as crew:
        floor = await measure_floor(crew, everything) if workloads else None
        over = ""
        for workload in workloads:
            if over:
                served[workload.name] = _unsent(workload, budget, over)
                continue
            traffic = await _run_workload(
                workload,
                budget,
                target,
                crew,
                floor,
                dealing=dealing,
                earlier=earlier.get(workload.name),
            )
            if (trial := trials.get(workload.name)) and not traffic.interrupted:
                tried = await _run_workload(trial, budget, target, crew, floor, until_failure=True)
                traffic = replace(traffic, at_capacity=tried)
            over = _end(traffic)
            served[workload.name] = traffic
    return Traffic(served, engines=dealing.engines) if served else Traffic(served)


async def _run_trial(workload: Workload, budget: Budget, target: Target) -> WorkloadTraffic:
    async with Crew.of(size(workload)) as crew:
        floor = await measure_floor(crew, [workload])
        return await _run_workload(workload, budget, target, crew, floor, until_failure=True)


async def _run_workload(
    workload: Workload,
    budget: Budget,
    target: Target,
    crew: Crew,
    floor: Floor | None,
    *,
    until_failure: bool = False,
    dealing: Dealing | None = None,
    earlier: Before | None = None,
) -> WorkloadTraffic:
    if target.allowance.requests <= _WARMUP_REQUESTS:
        return _unsent(workload, budget, f"not sent: {_MAX_REQUESTS} is reached")
    tokenizer = ServerTokenizer(target.endpoint, target.model)
    try:
        workload = await asyncio.to_thread(prepared, workload, tokenizer)
    except (PreparationError, TokenizerError) as error:
        return _unsent(workload, budget, _death(target) or str(error))
    job = _job(workload, target)
    warmed = await warm_up(crew, job, _WARMUP_REQUESTS, _DRAIN_SECONDS)
    target.allowance.requests -= _WARMUP_REQUESTS
    before = await _read(target)
    if dealing:
        dealing.begin(before)
    run = _Run(
        workload,
        budget,
        target,
        crew,
        floor,
        job,
        before,
        warmed,
        until_failure,
        dealing,
        earlier,
    )
    return await run.run()


async def _read(target: Target, seconds: float | None = None) -> Counters | None:
    """What all replicas count now; None where one does not say it, within `seconds`."""
    endpoints = [replace(each, seconds=seconds) for each in target.replicas or [target.endpoint]]
    reads = (asyncio.to_thread(metrics_page, endpoint) for endpoint in endpoints)
    return Counters.of(await asyncio.gather(*reads))


def _job(workload: Workload, target: Target) -> Job:
    """A job of this workload in which nothing is to be sent yet."""
    return Job(
        endpoint=target.endpoint,
        workload=workload,
        model=target.model,
        vocab=target.vocab,
        nonce=secrets.randbits(64),
        at_once=target.allowance.at_once,
    )


@dataclass
class _Run:
    """The measurement of one workload; `before` is what the server counted until then. `heard` is
    when a token came last, `is_stalled` that the last request to end had waited in vain,
    `has_stalled` that any did.
    """

    workload: Workload
    budget: Budget
    target: Target
    crew: Crew
    floor: Floor | None
    job: Job
    before: Counters | None
    warmed: WarmUp
    until_failure: bool = False
    dealing: Dealing | None = None
    earlier: Before | None = None
    ended: list[tuple[int, Sample]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    interrupted: str = ""
    capped: str = ""
    is_final: bool = False
    failures_in_a_row: int = 0
    has_stalled: bool = False
    next_look: float = field(default_factory=lambda: _FIRST_LOOK_SECONDS)
    service: Service | None = None
    peak: Evidence | None = None

    def __post_init__(self) -> None:
        """Fixes when everything is due."""
        self.stop = asyncio.Event()
        self.latest, self.problem = self.before, self.warmed.problem
        self.heard, self.is_stalled = self.warmed.heard, self.warmed.is_stalled
        self.origin, self.began_at = time.perf_counter() + _LEAD_SECONDS, time.time()
        self.most = self.target.allowance.requests
        self.schedule = [self.origin + offset for offset in arrivals(self.workload)][: self.most]
        self.rule = StoppingRule(
            self.workload,
            self.budget,
            self._start,
            until_failure=self.until_failure,
            dealing=self.dealing,
            earlier=self.earlier,
        )

    async def run(self) -> WorkloadTraffic:
        await self.crew.begin(self._jobs())
        listener = asyncio.create_task(self._listen())
        gauge = asyncio.create_task(self._gauge())
        await self._watch(listener)
        gauge.cancel()
        self.stop.set()
        self.end = min(time.perf_counter(), self._deadline)
        if self.rule.keeps_up is None:
            self.service = self._service(self.end)
        await self.crew.stop_sending()
        self.problem = await self._drain(listener) or self.problem
        # All may have been decided by the very failures of a server that was dying.
        if not self.is_final and (self.interrupted or self.failures_in_a_row):
            await self._hear_last_words()
        if not self.is_final:
            self._take(await _read(self.target))
        self.target.allowance.requests -= len(self.ended)
        return self._traffic()

    @property
    def _start(self) -> float:
        return self.origin + self.workload.warmup.seconds

    @property
    def _deadline(self) -> float:
        return self.origin + self.workload.max_duration.seconds

    def _jobs(self) -> Sequence[Job]:
        """The workload, dealt out to as many workers as it takes."""
        count = size(self.workload)
        places = self.workload.concurrency or 0
        return [
            replace(
                self.job,
                schedule=list(enumerate(self.schedule))[worker::count],
                places=len(range(worker, places, count)),
                start=self.origin,
                until=self._deadline,
                first=worker,
                step=count,
                most=self.most,
                at_once=max(1, self.target.allowance.at_once // count),
            )
            for worker in range(count)
        ]

    async def _listen(self) -> None:
        async for report in self.crew.reports():
            self.heard = max(self.heard, report.last_token)
            self.lags += report.lags
            self.busy.append(report.busy)
            for number, sample in report.ended:
                self._ended(number, sample)
            if report.is_full:
                self._cap(_MAX_CONCURRENCY)
            if self.rule.is_decided(time.perf_counter()):
                self.stop.set()

    def _ended(self, number: int, sample: Sample) -> None:
        if sample.outcome is not Outcome.UNFINISHED:
            self.failures_in_a_row = 0 if sample.is_ok else self.failures_in_a_row + 1
            self.is_stalled = sample.outcome in UNANSWERED
            self.has_stalled |= sample.outcome is Outcome.STALLED
        if self.failures_in_a_row >= _HOPELESS and not self.stop.is_set():
            self._interrupt(f"{_HOPELESS} requests in a row failed: {sample.detail}")
        self.ended.append((number, sample))
        if len(self.ended) >= self.most:
            self._cap(_MAX_REQUESTS)
        if self.dealing:
            self.dealing.answered(sample)
        self.rule.finished(number, sample)

    def _cap(self, key: str) -> None:
        if not self.stop.is_set():
            self.capped = key
            self.stop.set()

    def _interrupt(self, reason: str, *, is_final: bool = False) -> None:
        self.interrupted, self.is_final = reason, is_final
        self.stop.set()

    async def _interrupt_if_over(self) -> None:
        """Breaks off when the server died, or hangs."""
        if not self.is_final and (over := _death(self.target) or await self._hang()):
            self._interrupt(over, is_final=True)

    async def _watch(self, listener: asyncio.Task[None]) -> None:
        """Looks after the server and the clock until all is decided, or the time is over."""
        shown = 0.0
        while not self.stop.is_set() and (now := time.perf_counter()) < self._deadline:
            if listener.done() and listener.exception():
                return
            await self._interrupt_if_over()
            self._watch_backlog()
            if self.rule.is_decided(now):
                return
            if now >= shown + 1:
                shown = now
                self.target.progress(self._state())
            pause = min(_WATCH_SECONDS, self._deadline - time.perf_counter())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), max(0.0, pause))

    async def _gauge(self) -> None:
        """Reads what the server says of itself, again and again; a slow answer holds up nothing."""
        while True:
            self._take(await _read(self.target, _ANSWER_SECONDS))
            await asyncio.sleep(_WATCH_SECONDS)

    def _take(self, read: Counters | None) -> None:
        if read is None:
            return
        self.latest = read
        if self.dealing:
            self.dealing.take(read)
        if (running := read.totals.get(RUNNING)) is not None:
            self.rule.running_peak = max(self.rule.running_peak, running)
            self.peak = Evidence(self.rule.running_peak, "sequences", RUNNING, read.at)

    async def _drain(self, listener: asyncio.Task[None]) -> str:
        """Lets what is in flight end, unless nothing more will. What went wrong with the client."""
        deadline = time.perf_counter() + _DRAIN_SECONDS
        while not (self.interrupted or listener.done()) and time.perf_counter() < deadline:
            await asyncio.wait({listener}, timeout=_WATCH_SECONDS)
            await self._interrupt_if_over()
        return await self.crew.give_up_after(0.0, listener)

    async def _hear_last_words(self) -> None:
        """What the server died of, if it did: it answers with errors for a while before it ends."""
        for _ in range(round(_DYING_SECONDS / _WATCH_SECONDS) if self.target.death else 0):
            await self._interrupt_if_over()
            if self.is_final:
                return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _hang(self) -> str:
        """That no request makes progress any more, or that some never will, for a process of the
        server is stopped; empty otherwise. A request that is alone in being silent may wait for its
        turn.
        """
        patience = self.workload.patience.seconds
        silent = time.perf_counter() - self.heard
        stopped = self.target.stopped() if self.has_stalled or self.is_stalled else ""
        who = f": {stopped}" if stopped else ""
        if self.is_stalled and silent >= patience:
            endpoint = replace(self.target.endpoint, seconds=_ANSWER_SECONDS)
            healthy = await asyncio.to_thread(endpoint.is_healthy)
            health = "while /health answers 200" if healthy else "and /health does not answer 200"
            return f"the server hangs: no token for {silent:.0f} s {health}{who}"
        return (
            f"the server hangs: no token for {patience:g} s for some requests{who}" if who else ""
        )

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
        measured = self._measured()
        if not measured or until <= self._start:
            return None
        completed = sum(sample.is_ok for sample in measured) / len(measured)
        ended = {number: sample.ended for number, sample in self.ended}
        due = [(n, moment) for n, moment in enumerate(self.schedule) if moment <= until]
        intervals = [(moment, ended.get(number, until)) for number, moment in due]
        rate = sum(moment >= self._start for _, moment in due) / (until - self._start)
        return service(completed, rate, intervals, self._start, until) if rate else None

    def _measured(self) -> Sequence[Sample]:
        """The requests that were due in the window of the measurement, in order of arrival."""
        ordered = sorted(self.ended, key=lambda item: item[0])
        return [sample for _, sample in ordered if sample.due >= self._start]

    def _state(self) -> str:
        words = {True: "PASS", False: "FAIL", None: "deciding …"}
        seconds = max(0.0, time.perf_counter() - self.origin)
        answers = "   ".join(
            f"{name} {words[answer]}" for name, answer in self.rule.answers() if name != "census"
        )
        return f"{self.workload.name}  {len(self.ended):,} requests in {seconds:.0f} s   {answers}"

    def _traffic(self) -> WorkloadTraffic:
        counted = Counted(self.before, self.latest) if self.before and self.latest else None
        samples = [sample for _, sample in self.ended]
        breakdown, measured = Breakdown.of(samples, counted), self._measured()
        now = time.perf_counter()
        conditions = Conditions(
            lags=self.lags,
            busy=self.busy,
            wall_step=(time.time() - self.began_at) - (now - self.origin + _LEAD_SECONDS),
            seconds=now - self.origin,
            requests=len(samples),
            counted=counted,
            breakdown=breakdown,
            problem=self.problem,
        )
        return WorkloadTraffic(
            workload=self.workload,
            budget=self.budget,
            samples=measured,
            start=self._start,
            end=max(self.end, self._start + 1e-9),
            began_at=self.began_at,
            running_peak=self.peak or _unread("sequences", RUNNING),
            preempted=_more(counted, PREEMPTIONS, "preemptions"),
            interrupted=self.interrupted,
            capped=self.capped,
            is_final=self.is_final,
            invalid=faults(self.workload, conditions),
            late=lateness(self.workload, measured, self.end, conditions),
            service=self.service,
            floor=self.floor,
            breakdown=breakdown,
            hit_rate=counted.hit_rate if counted else None,
        )


def _end(traffic: WorkloadTraffic) -> str:
    """Why nothing more can be sent after this traffic; empty when something can."""
    parts = (traffic, traffic.at_capacity)
    return next((part.interrupted for part in parts if part and part.is_final), "")


def _death(target: Target) -> str:
    return target.death() if target.death else ""


def _unsent(workload: Workload, budget: Budget, why: str) -> WorkloadTraffic:
    """The traffic of a workload that can't be sent."""
    return WorkloadTraffic(
        workload=workload,
        budget=budget,
        samples=(),
        start=0.0,
        end=1e-9,
        began_at=time.time(),
        running_peak=Evidence(None, "sequences", RUNNING, problem=f"error: {why}"),
        preempted=Evidence(None, "preemptions", PREEMPTIONS, problem=f"error: {why}"),
        interrupted=why,
    )


def _more(counted: Counted | None, name: str, unit: str) -> Evidence:
    """By how much a counter of the server rose."""
    more = counted.more(name) if counted else None
    if counted is None or more is None:
        return _unread(unit, name)
    return Evidence(more, unit, name, counted.after.at)


def _unread(unit: str, name: str) -> Evidence:
    return Evidence(None, unit, name, problem="error: /metrics did not report it")
