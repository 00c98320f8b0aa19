"""What a workload's requirements claim about its requests, and how each claim is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Self

from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.spec.workload import GoodputRequire
from pytest_llmdeploy.verdict import Corridor, Decision, Observation, Rule, Tolerated, beta_for

METRICS = ("ttft", "tpot", "itl", "e2el", "stall")
# The latencies of a workload in an earlier run, by metric.
Before = Mapping[str, Sequence[float]]
# An indifference zone is written for p99, and scaled to the others.
_WRITTEN_FOR = 0.01


@dataclass(frozen=True, slots=True)
class Budget:
    """How likely a wrong PASS of a claim (`alpha`), and a wrong FAIL of a claim (`beta`) may be.

    A deployment passes only with all its claims, so that each may have the whole of alpha; it fails
    with any of them, and they share beta.
    """

    alpha: float
    beta: float

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """What the spec's confidence leaves."""
        balance = spec.require.balance
        claims = sum(_claims(workload) for workload in spec.workloads)
        claims += sum(limit is not None for limit in (balance.requests, balance.tokens))
        return cls(round(1 - spec.confidence, 9), beta_for(spec.confidence, claims))


@dataclass(frozen=True)
class Claim:
    """What must hold for the fraction `rule.p` of requests: to be within the limit (ms), or no
    further beyond what they were earlier than is tolerated. `observe` takes from a request what is
    compared with it, None where it has none.
    """

    name: str
    observe: Callable[[Sample], Observation | None]
    rule: Rule
    limit: float | Tolerated

    def begin(self, early: Sequence[Sample]) -> Decision | Corridor:
        """Its decision, when nothing may be decided on the `early` requests alone."""
        rule = settled(self.rule, sum(self.observe(sample) is not None for sample in early))
        if isinstance(self.limit, Tolerated):
            return Corridor.on(self.limit, rule)
        return Decision(rule, self.limit)


def settled(rule: Rule, early: int) -> Rule:
    """The rule that decides nothing before more than `early` requests."""
    return replace(rule, least=max(rule.least, early + 1 if early else 0))


def claims(workload: Workload, budget: Budget, earlier: Before) -> Sequence[Claim]:
    """The claims of all latency and goodput requirements of a workload. `earlier` are its latencies
    in an earlier run, by metric: where there are none, nothing is claimed of a regression.
    """
    found = [
        Claim(
            f"{metric} {percentile}",
            attrgetter(metric),
            rule(workload, budget, percentile.fraction),
            float(limit),
        )
        for metric, limits in workload.require.latency.items()
        for percentile, limit in limits.items()
    ]
    if wanted := workload.require.goodput:
        found.append(
            Claim("goodput", lambda s: badness(s, wanted), rule(workload, budget, wanted.share), 0)
        )
    for metric, tolerances in workload.require.regression.limits.items():
        for percentile, tolerance in tolerances.items() if metric in earlier else ():
            plain = rule(workload, budget, percentile.fraction)
            tolerated = Tolerated.of(earlier[metric], plain, tolerance)
            name = f"{metric} {percentile} regression"
            found.append(Claim(name, attrgetter(metric), tolerated.rule, tolerated))
    return found


def rule(workload: Workload, budget: Budget, p: float) -> Rule:
    """How a fraction of the requests of this workload is decided."""
    zone = None
    if workload.indifference is not None:
        good, bad = (round(part / _WRITTEN_FOR * (1 - p), 12) for part in workload.indifference)
        zone = good, bad
    return Rule(p, budget.alpha, budget.beta, burst=float(workload.burst), indifference=zone)


def badness(sample: Sample, wanted: GoodputRequire, spared: float = 0.0) -> float:
    """0 for a request that is within all limits, or over them by no more than is `spared` (ms),
    else infinite.
    """
    values = ((getattr(sample, metric), limit + spared) for metric, limit in wanted.limits.items())
    return 0.0 if all(value is None or value <= limit for value, limit in values) else math.inf


def _claims(workload: Workload) -> int:
    latencies = sum(map(len, workload.require.latency.values()))
    once = latencies + (workload.require.goodput is not None)
    # At its capacity, the same is claimed again.
    claimed = once if workload.require.capacity is None else 2 * once
    return claimed + sum(map(len, workload.require.regression.limits.values()))
