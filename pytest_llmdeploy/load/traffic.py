"""Traffic: what was sent to the server and what came back, per workload."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.load.backlog import KEEPS_UP, Service
from pytest_llmdeploy.load.claims import METRICS, Budget, badness, rule, settled
from pytest_llmdeploy.load.engines import Engines
from pytest_llmdeploy.load.samples import Sample, requests_json
from pytest_llmdeploy.load.validity import Lateness
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.workload import GoodputRequire
from pytest_llmdeploy.units import Percentile, show
from pytest_llmdeploy.verdict import Observation, Quantile, Readings, Rule, Share, Shares
from pytest_llmdeploy.verdict.findings import LONGER

if TYPE_CHECKING:
    # What measures is not loaded by a plan.
    from pytest_llmdeploy.load.breakdown import Breakdown
    from pytest_llmdeploy.load.floor import Floor

_SOURCE = "timed by the client"


@dataclass(frozen=True)
class Latencies:
    """One latency of every measured request, in order of arrival: ms, +inf where it failed; of the
    ITL, the gaps of each request with their tokens.

    `rule` says how a percentile of them is decided, `resolution` (ms) is the shortest limit that
    this client can judge, `clients` (ms) what may be its own in any of them where they are invalid.
    """

    values: Sequence[Observation]
    rule: Callable[[float], Rule]
    problem: str = ""
    invalid: str = ""
    saved: str = ""
    resolution: float = 0.0
    clients: float = math.inf
    remedy: str = LONGER

    def at(self, percentile: Percentile | str) -> Quantile:
        """A percentile of them, to be compared with a limit."""
        return Quantile(
            self.values,
            self.rule(Percentile.parse(percentile).fraction),
            source=_SOURCE,
            problem=self.problem,
            invalid=self.invalid,
            saved=self.saved,
            resolution=self.resolution,
            clients=self.clients,
            remedy=self.remedy,
        )

    def to_json(self) -> dict[str, Any]:
        points: dict[str, Any] = {"n": len(self.values)}
        for name in ("p50", "p90", "p99"):
            points[name] = self.at(name).point if self.values else None
        points["max"] = max(map(_largest, self.values), default=None)
        return {key: _finite(value) for key, value in points.items()}


@dataclass(frozen=True, kw_only=True)
class WorkloadTraffic:
    """One workload as it was served.

    `samples` are the requests that were due in the measurement window [start, end] (seconds on
    the monotonic clock), in order of arrival. `interrupted` says why the run broke off, `capped`
    which key of the spec ended it early, `invalid` why it decides nothing, and `late` why it
    decides nothing that the client may have caused; `is_final` that the server can serve nothing
    more.
    `at_capacity` is what was sent at the rate of `require.capacity` afterwards.
    """

    workload: Workload
    budget: Budget
    samples: Sequence[Sample]
    start: float
    end: float
    began_at: float
    running_peak: Evidence
    preempted: Evidence
    interrupted: str = ""
    capped: str = ""
    is_final: bool = False
    invalid: Sequence[str] = ()
    late: Lateness = field(default_factory=Lateness)
    service: Service | None = None
    floor: Floor | None = None
    breakdown: Breakdown | None = None
    hit_rate: float | None = None
    at_capacity: WorkloadTraffic | None = None

    @property
    def ttft(self) -> Latencies:
        """Time to first token."""
        return self.latencies("ttft")

    @property
    def tpot(self) -> Latencies:
        """Time per output token after the first; requests of one token have none."""
        return self.latencies("tpot")

    @property
    def itl(self) -> Latencies:
        """Inter-token latency: the gaps between tokens, each weighted by its tokens."""
        return self.latencies("itl")

    @property
    def e2el(self) -> Latencies:
        """End-to-end latency."""
        return self.latencies("e2el")

    @property
    def stall(self) -> Latencies:
        """The longest silence within each request."""
        return self.latencies("stall")

    def latencies(self, metric: str) -> Latencies:
        """The latencies of one of `METRICS`."""
        seen = [(sample.due, getattr(sample, metric)) for sample in self.samples]
        known = [(due, value) for due, value in seen if value is not None]
        return Latencies(
            [value for _, value in known],
            self._rule(sum(due < self._least for due, _ in known)),
            self.interrupted,
            "; ".join(self.doubts),
            self.saved,
            self.floor.resolution(metric) if self.floor else 0.0,
            self._clients([metric]),
            self._remedy,
        )

    def goodput(self, wanted: GoodputRequire) -> Share:
        """The share of requests that are within all limits of `wanted`."""
        early = sum(sample.due < self._least for sample in self.samples)
        too_fine = list(self._too_fine(wanted))
        clients = math.inf if too_fine else self._clients(wanted.limits)
        return Share(
            [badness(sample, wanted) == 0 for sample in self.samples],
            self._rule(early)(wanted.share),
            source=_SOURCE,
            problem=self.interrupted,
            invalid="; ".join([*self.doubts, *too_fine]),
            saved=self.saved,
            remedy=self._remedy,
            spared=[badness(sample, wanted, clients) == 0 for sample in self.samples],
        )

    @property
    def doubts(self) -> Sequence[str]:
        """Why nothing passes on this traffic."""
        return [*self.invalid, *self.late.reasons]

    def _clients(self, metrics: Iterable[str]) -> float:
        """What may be the client's in any of these latencies (ms), where there are doubts. A late
        request makes none later than it was itself, as long as they are counted from when they were
        due; the pace of the tokens may be spoilt by it in any way.
        """
        is_bounded = not self.invalid and set(metrics) <= {"ttft", "e2el"}
        return self.late.most_ms if is_bounded else math.inf

    def _too_fine(self, wanted: GoodputRequire) -> Iterator[str]:
        """The limits that this client can't judge."""
        for metric, limit in wanted.limits.items():
            finest = self.floor.resolution(metric) if self.floor else 0.0
            if limit < finest:
                yield f"this client can't judge a {metric.upper()} below {show(finest, 'ms')}"

    @property
    def seconds(self) -> float:
        """How long it was measured, at its capacity too."""
        more = self.at_capacity.seconds if self.at_capacity else 0.0
        return self.end - self.start + more

    @property
    def saved(self) -> str:
        """The part of the workload's max_duration that was not needed; empty when all was."""
        if self.capped:
            return ""
        whole = self.workload.max_duration.seconds - self.workload.warmup.seconds
        left = whole - (self.end - self.start)
        return f"{show(left * 1000, 'ms')} saved" if left >= 1 else ""

    @property
    def _remedy(self) -> str:
        """How more requests would be sent."""
        return f"{self.capped} ended the traffic" if self.capped else LONGER

    @property
    def _least(self) -> float:
        """The moment up to which nothing is decided."""
        return self.start + self.workload.min_duration.seconds

    def _rule(self, early: int) -> Callable[[float], Rule]:
        return lambda p: settled(rule(self.workload, self.budget, p), early)

    @property
    def errors(self) -> Readings:
        """The fraction of requests that failed: a census of those that were sent."""
        source = "counted by the client"
        if not self.samples:
            problem = self.interrupted or "error: no request was measured"
            return Readings.of(Evidence(None, "fraction", source, problem=problem))
        failed = sum(not sample.is_ok for sample in self.samples)
        return Readings.of(Evidence(failed / len(self.samples), "fraction", source, self.began_at))

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Requests by how they ended."""
        return Counter(str(sample.outcome) for sample in self.samples)

    @property
    def most_failures(self) -> str:
        """How most of the failed requests did, with what one of them said; empty without any."""
        failed = Counter(sample.outcome for sample in self.samples if not sample.is_ok)
        if not failed:
            return ""
        ((outcome, count),) = failed.most_common(1)
        said = next(sample.detail for sample in self.samples if sample.outcome is outcome)
        return f"{count:,} of {len(self.samples):,}: {outcome}" + (f", {said}" if said else "")

    @property
    def offered_rate(self) -> float:
        return len(self.samples) / (self.end - self.start) if self.samples else 0.0

    @property
    def achieved_rate(self) -> float:
        """Requests per second that were completed within the window."""
        done = sum(sample.is_ok and sample.ended <= self.end for sample in self.samples)
        return done / (self.end - self.start) if self.samples else 0.0

    def keeps_up(self) -> Judgement:
        """At least 98 % of what arrives is completed, and the backlog does not grow by the rest."""
        requirement = f"{self.workload.rate or '—'}, no backlog"
        served = self.service
        if served is None or self.interrupted or self.doubts:
            status = Status.ERROR if self.interrupted or served is None else Status.INVALID
            result = self.interrupted or "; ".join(self.doubts) or "no request was measured"
            return Judgement(status=status, requirement=requirement, result=result)
        good = served.keeps_up
        return judged(
            good,
            requirement,
            f"{show(max(0.0, served.share), 'fraction')} served",
            measured=served.share,
            bound=served.high if good is False else served.low,
            limit=KEEPS_UP,
            unit="fraction",
            margin=(served.low - KEEPS_UP) / KEEPS_UP,
            evidence={"source": "requests in flight, counted by the client", **asdict(served)},
        )

    def to_json(self) -> dict[str, Any]:
        failures = {str(s.outcome): s.detail for s in reversed(self.samples) if not s.is_ok}
        return {
            "sent": self.workload.sent,
            "offered_rate": self.offered_rate,
            "achieved_rate": self.achieved_rate,
            "seconds": self.end - self.start,
            "counts": dict(self.outcomes),
            "failures": failures,
            "interrupted": self.interrupted or None,
            "capped": self.capped or None,
            "invalid": list(self.doubts),
            "floor": asdict(self.floor) if self.floor else None,
            "breakdown": self.breakdown.to_json() if self.breakdown else None,
            "prefix_cache_hit_rate": self.hit_rate,
            "running_peak": self.running_peak.value,
            "preemptions": self.preempted.value,
            **{metric: self.latencies(metric).to_json() for metric in METRICS},
            "requests": requests_json(self.samples, self.start),
            "at_capacity": self.at_capacity.to_json() if self.at_capacity else None,
        }


@dataclass(frozen=True)
class Traffic(Mapping[str, WorkloadTraffic]):
    """All traffic of a run, by the name of the workload, and what devices and engines showed
    meanwhile.
    """

    workloads: Mapping[str, WorkloadTraffic]
    devices: Recording = Recording()
    engines: Engines = field(default_factory=Engines)

    def __getitem__(self, workload: str | Workload) -> WorkloadTraffic:
        return self.workloads[workload if isinstance(workload, str) else workload.name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.workloads)

    def __len__(self) -> int:
        return len(self.workloads)

    @cached_property
    def seconds(self) -> float:
        return math.fsum(traffic.seconds for traffic in self.workloads.values())

    def shares(self, of: str) -> Shares:
        """The shares that the engines had in the "requests", or "tokens"."""
        broken = (one.interrupted for one in self.workloads.values() if one.interrupted)
        engines = self.engines
        return replace(engines, problem=engines.problem or next(broken, "")).shares(of)

    def to_json(self) -> dict[str, Any]:
        return {name: traffic.to_json() for name, traffic in self.workloads.items()}


def _largest(observed: Observation) -> float:
    return observed if isinstance(observed, int | float) else max(value for value, _ in observed)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
