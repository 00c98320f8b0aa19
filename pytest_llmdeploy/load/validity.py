"""Whether what was measured is the server's doing, or the client's and the set-up's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import show

if TYPE_CHECKING:
    # What measures is not loaded by a plan.
    from pytest_llmdeploy.load.breakdown import Breakdown
    from pytest_llmdeploy.load.counters import Counted

# What of a limit the client may use up, and what it may always.
_SHARE_OF_LIMIT = 0.05
_ALWAYS_MS = 5.0
_MOST_BUSY = 0.85
_LEAST_SENT = 0.98
_OTHERS = 0.02
# Blocks of the cache are shared only whole, and a random prompt may begin like another.
_HITS_BEYOND = 0.02
# What time synchronisation may correct without a step: at most 500 parts per million.
_STEP_SECONDS, _SLEW = 0.1, 0.0005
# Fewer timers than these say nothing about a tail.
_LEAST_LAGS = 100

_PREFILL, _DECODE = ("ttft", "e2el"), ("tpot", "itl", "stall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a run was measured. `lags` and `busy` are the workers' event loops (s) and their
    shares of a core; `wall_step` is by how much the clock of the wall moved against the monotonic
    one, `requests` are all that were sent.
    """

    lags: Sequence[float]
    busy: Sequence[float]
    wall_step: float
    requests: int
    seconds: float
    counted: Counted | None
    breakdown: Breakdown | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Lateness:
    """Why the client was too late for what it measures, and by how many ms it may have been late
    for any request: what is still over a limit without these is the server's doing.
    """

    reasons: Sequence[str] = ()
    most_ms: float = 0.0


def faults(workload: Workload, conditions: Conditions) -> Sequence[str]:
    """Why the times of a run do not count, for or against the server; nothing when they do."""
    found = [conditions.problem] if conditions.problem else []
    found += _clock(conditions)
    found += _server(workload, conditions)
    return found


def lateness(
    workload: Workload, samples: Sequence[Sample], until: float, conditions: Conditions
) -> Lateness:
    """How late the client was, up to `until` (seconds on the monotonic clock)."""
    sending = max((sample.sent - sample.due for sample in samples), default=0.0)
    return Lateness(
        list(_client(workload, samples, until, conditions)),
        1000 * (max(0.0, sending) + max(conditions.lags, default=0.0)),
    )


def _clock(conditions: Conditions) -> Iterator[str]:
    step = abs(conditions.wall_step)
    if step > _STEP_SECONDS + _SLEW * conditions.seconds:
        yield f"the clock stepped by {show(step * 1000, 'ms')}: this machine slept, or was set"


def _server(workload: Workload, conditions: Conditions) -> Iterator[str]:
    counted = conditions.counted
    if counted is None:
        return
    if counted.restart:
        yield f"the server was started anew meanwhile: {counted.restart}"
        return
    others = conditions.breakdown.others if conditions.breakdown else None
    if others is not None and others > _OTHERS * conditions.requests:
        yield f"the server answered {others:,} requests of somebody else meanwhile"
    declared, hit = workload.expected_hit_rate, counted.hit_rate
    if hit is not None and hit > declared + _HITS_BEYOND:
        yield (
            f"{show(hit, 'fraction')} of the prompt tokens were in the prefix cache, "
            f"{show(declared, 'fraction')} are declared"
        )


def _client(
    workload: Workload, samples: Sequence[Sample], until: float, conditions: Conditions
) -> Iterator[str]:
    due = [sample for sample in samples if sample.due <= until]
    sent = sum(sample.sent <= until for sample in due)
    if workload.rate and sent < _LEAST_SENT * len(due):
        yield f"only {sent:,} of {len(due):,} requests that were due had been sent"
    limits = _tightest(workload)
    if not limits:
        return
    lag = _p99([sample.sent - sample.due for sample in samples]) * 1000
    if lag > (allowed := _allowed(limits, _PREFILL)):
        yield f"requests were sent up to {show(lag, 'ms')} late, {show(allowed, 'ms')} are allowed"
    loop = _p99(conditions.lags) * 1000 if len(conditions.lags) >= _LEAST_LAGS else 0.0
    if loop > (allowed := _allowed(limits, _DECODE)):
        yield f"the client was late by {show(loop, 'ms')}, {show(allowed, 'ms')} are allowed"
    busy = math.fsum(conditions.busy) / len(conditions.busy) if conditions.busy else 0.0
    if busy > _MOST_BUSY:
        yield f"a client process used {show(busy, 'fraction')} of its core"


def _tightest(workload: Workload) -> Mapping[str, float]:
    """The smallest limit on each metric, in ms."""
    require = workload.require
    found = {metric: min(map(float, limits.values())) for metric, limits in require.latency.items()}
    for metric, limit in require.goodput.limits.items() if require.goodput else ():
        found[metric] = min(float(limit), found.get(metric, math.inf))
    return found


def _allowed(limits: Mapping[str, float], metrics: Sequence[str]) -> float:
    """What the client may add to the metrics of this kind, in ms; no limit, no bound."""
    tightest = min((limits[metric] for metric in metrics if metric in limits), default=math.inf)
    return max(_ALWAYS_MS, _SHARE_OF_LIMIT * tightest)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0
