"""A trial: one workload at one rate, and whether every limit of the workload holds there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.load.traffic import WorkloadTraffic
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Duration, Rate
from pytest_llmdeploy.verdict import Readings

# Queues and batches have to grow first: what holds for the first requests says little. It is also
# the time before which nobody looks at the backlog.
LEAST_SECONDS = 8.0
# All that a sequential test needs, and more would only fill the memory with their schedule.
_MOST_REQUESTS = 200_000
_SHOWN = (("ttft", "p50"), ("ttft", "p99"), ("tpot", "p50"), ("tpot", "p99"), ("e2el", "p50"))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of a workload at `rate` (requests per second).

    `limit` is the requirement that does not hold or is not decided, `reason` says what was found
    of it; both are empty where all hold. `problem` is an error of the server, after which nothing
    more can be tried. `served` is the rate at which requests were completed, `latencies` holds
    percentiles in ms ("ttft p50"), +inf where those requests failed.
    """

    rate: float
    status: Status
    limit: str = ""
    reason: str = ""
    problem: str = ""
    served: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    latencies: Mapping[str, float] = field(default_factory=dict)
    judgements: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether every limit holds at this rate; None where that was not decided."""
        return {Status.PASS: True, Status.FAIL: False}.get(self.status)

    @property
    def power(self) -> float:
        """Requests served per second, for each second that the median request takes."""
        median = self.latencies.get("e2el p50", math.inf)
        return self.served / (median / 1000) if 0 < median < math.inf else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "status": str(self.status),
            "limit": self.limit or None,
            "reason": self.reason or None,
            "served_rate": self.served,
            "seconds": self.seconds,
            "requests": self.requests,
            "latencies": {
                name: value if math.isfinite(value) else None
                for name, value in self.latencies.items()
            },
            "limits": {name: _plain(found) for name, found in self.judgements.items()},
        }


def at_rate(workload: Workload, rate: float) -> Workload:
    """The workload as it is tried at another rate.

    Whatever else it requires, the server must keep up, for as long as it takes to see that; how
    many sequences run is no limit on it.
    """
    require = workload.require.model_copy(
        update={"keeps_up": True, "capacity": None, "concurrent_sequences": None}
    )
    warmup, least = workload.warmup, Duration(LEAST_SECONDS * 1000)
    longest = Duration(
        min(workload.max_duration, max(warmup + 2 * least, _MOST_REQUESTS / rate * 1000))
    )
    shortest = Duration(max(workload.min_duration, min(least, longest - warmup)))
    return workload.model_copy(
        update={
            "rate": Rate(rate),
            "min_duration": shortest,
            "max_duration": longest,
            "require": require,
        }
    )


def judgements(traffic: WorkloadTraffic) -> Mapping[str, Judgement]:
    """The judgement on every limit of the workload, as its row has it, by the row's name."""
    return dict(_judgements(traffic))


def _judgements(traffic: WorkloadTraffic) -> Iterator[tuple[str, Judgement]]:
    require = traffic.workload.require
    for metric, limits in require.latency.items():
        for percentile, limit in limits.items():
            found = traffic.latencies(metric).at(percentile)
            yield f"{metric.upper()} {percentile}", found.at_most(limit)
    if require.goodput is not None:
        yield "Goodput", traffic.goodput(require.goodput).at_least(f"with {require.goodput}")
    if require.errors is not None:
        yield "Errors", traffic.errors.at_most(require.errors, "of requests")
    if require.keeps_up:
        yield "Keeps up", traffic.keeps_up()
    if require.preemptions is not None:
        yield "Preemptions", Readings.of(traffic.preempted).at_most(require.preemptions)


def holds(traffic: WorkloadTraffic) -> Trial:
    """Whether every limit of the workload holds on this traffic, by the judgements of its rows.

    One that does not is enough to say no. To say yes, the run must have been a valid one: a limit
    on errors alone does not see that the client could not send what it should.
    """
    found = judgements(traffic)
    status, limit, reason = _worst(traffic, found)
    return Trial(
        rate=float(traffic.workload.rate or 0.0),
        status=status,
        limit=limit,
        reason=reason,
        problem=traffic.interrupted,
        served=_served(traffic),
        seconds=traffic.end - traffic.start,
        requests=len(traffic.samples),
        latencies=_latencies(traffic),
        judgements=found,
    )


def _worst(traffic: WorkloadTraffic, found: Mapping[str, Judgement]) -> tuple[Status, str, str]:
    """The status of the whole, the limit that made it so, and what was found of that."""
    open_ones = {name: one for name, one in found.items() if one.status is not Status.PASS}
    for name, one in open_ones.items():
        if one.status is Status.FAIL:
            return Status.FAIL, name, f"{one.result}, required: {one.requirement}"
    if traffic.interrupted:
        return Status.ERROR, "", traffic.interrupted
    if traffic.doubts:
        return Status.INVALID, "", "; ".join(traffic.doubts)
    for name, one in open_ones.items():
        return one.status, name, one.hint or one.result
    if not found:
        return Status.ERROR, "", "the workload has no limit that could hold"
    return Status.PASS, "", ""


def at_capacity(traffic: WorkloadTraffic, required: Rate) -> Judgement:
    """Whether every limit of the workload still held at the rate that is required."""
    tried, requirement = traffic.at_capacity, f"every limit at {required}"
    if tried is None:
        reason = traffic.interrupted or "nothing was sent at this rate"
        return Judgement(status=Status.ERROR, requirement=requirement, result=reason)
    trial = holds(tried)
    named = " ".join(part for part in (trial.limit, trial.reason) if part)
    return Judgement(
        status=trial.status,
        requirement=requirement,
        result=named or f"all {len(trial.judgements)} hold",
        measured=trial.served,
        bound=float(required) if trial.holds else None,
        limit=float(required),
        unit="1/s",
        evidence={
            "source": f"timed by the client, {trial.requests:,} requests at {required}",
            **trial.to_json(),
        },
    )


def _served(traffic: WorkloadTraffic) -> float:
    """Requests per second that left the server: what came, but for what failed or piled up."""
    share = traffic.service.share if traffic.service else 0.0
    return traffic.offered_rate * max(0.0, share)


def _latencies(traffic: WorkloadTraffic) -> Mapping[str, float]:
    by_metric = {metric: traffic.latencies(metric) for metric, _ in _SHOWN}
    return {
        f"{metric} {percentile}": by_metric[metric].at(percentile).point
        for metric, percentile in _SHOWN
        if by_metric[metric].values
    }


def _plain(found: Judgement) -> dict[str, Any]:
    return {
        "status": str(found.status),
        "requirement": found.requirement,
        "result": found.result,
    }
