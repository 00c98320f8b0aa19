"""Traffic: what was sent to the server and what came back, per workload."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.load.backlog import KEEPS_UP, Service
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Percentile, show
from pytest_llmdeploy.verdict import Quantile, Readings

METRICS = ("ttft", "tpot", "e2el", "stall")


@dataclass(frozen=True)
class Latencies:
    """One latency of every measured request, in order of arrival: ms, +inf where it failed."""

    values: Sequence[float]
    confidence: float
    problem: str = ""

    def at(self, percentile: Percentile | str) -> Quantile:
        """A percentile of them, to be compared with a limit."""
        alpha = round(1 - self.confidence, 9)
        p = Percentile.parse(percentile).fraction
        source = "timed by the client"
        return Quantile(self.values, p, alpha, alpha, source, self.problem)

    def to_json(self) -> dict[str, Any]:
        points: dict[str, Any] = {"n": len(self.values)}
        for name in ("p50", "p90", "p99"):
            points[name] = self.at(name).point if self.values else None
        points["max"] = max(self.values, default=None)
        return {key: _finite(value) for key, value in points.items()}


@dataclass(frozen=True, kw_only=True)
class WorkloadTraffic:
    """One workload as it was served.

    `samples` are the requests that were due in the measurement window [start, end] (seconds on
    the monotonic clock), in order of arrival. `interrupted` says why the run broke off.
    """

    workload: Workload
    confidence: float
    samples: Sequence[Sample]
    start: float
    end: float
    began_at: float
    running_peak: Evidence
    preempted: Evidence
    interrupted: str = ""
    service: Service | None = None

    @property
    def ttft(self) -> Latencies:
        """Time to first token."""
        return self.latencies("ttft")

    @property
    def tpot(self) -> Latencies:
        """Time per output token after the first; requests of one token have none."""
        return self.latencies("tpot")

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
        values = (getattr(sample, metric) for sample in self.samples)
        known = [value for value in values if value is not None]
        return Latencies(known, self.confidence, self.interrupted)

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
        if served is None or self.interrupted:
            result = self.interrupted or "no request was measured"
            return Judgement(status=Status.ERROR, requirement=requirement, result=result)
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
            "offered_rate": self.offered_rate,
            "achieved_rate": self.achieved_rate,
            "seconds": self.end - self.start,
            "counts": dict(self.outcomes),
            "failures": failures,
            "interrupted": self.interrupted or None,
            "running_peak": self.running_peak.value,
            "preemptions": self.preempted.value,
            **{metric: self.latencies(metric).to_json() for metric in METRICS},
        }


@dataclass(frozen=True)
class Traffic(Mapping[str, WorkloadTraffic]):
    """All traffic of a run, by the name of the workload."""

    workloads: Mapping[str, WorkloadTraffic]

    def __getitem__(self, workload: str | Workload) -> WorkloadTraffic:
        return self.workloads[workload if isinstance(workload, str) else workload.name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.workloads)

    def __len__(self) -> int:
        return len(self.workloads)

    @cached_property
    def seconds(self) -> float:
        return math.fsum(traffic.end - traffic.start for traffic in self.workloads.values())

    def to_json(self) -> dict[str, Any]:
        return {name: traffic.to_json() for name, traffic in self.workloads.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
