"""The judgement on a percentile of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.units import show
from pytest_llmdeploy.verdict.sequential import Decision, SequentialTest


@dataclass(frozen=True)
class Quantile:
    """The p-quantile of `values` (ms; +inf for a request that failed), in order of arrival.

    "p99 ≤ limit" is the claim that at most 1 % of requests take longer, and that is what is
    tested, after every request; the first answer stands. The bound shown is the order statistic
    at which the same test would just decide. `problem` says why what was measured can't pass.
    """

    values: Sequence[float]
    p: float
    alpha: float = 0.05
    beta: float = 0.05
    source: str = "client"
    problem: str = ""

    def at_most(self, limit: float, about: str = "") -> Judgement:
        """PASS or FAIL once the test decides, else INCONCLUSIVE; ERROR without any request."""
        requirement = " ".join(part for part in (f"≤ {show(limit, 'ms')}", about) if part)
        decision = self.decide(limit)
        if not self.values or (self.problem and decision.answer is not False):
            return Judgement(
                status=Status.ERROR,
                requirement=requirement,
                result=self.problem or "no request was measured",
                limit=limit,
                unit="ms",
                evidence=self._evidence(decision),
            )
        bound = self._bound(decision)
        return judged(
            decision.answer,
            requirement,
            self._result(decision, bound),
            measured=_finite(self.point),
            bound=_finite(bound),
            limit=limit,
            unit="ms",
            margin=_margin(limit, bound),
            evidence=self._evidence(decision),
            hint=self.problem
            or ("" if decision.answer is not None else self._what_it_takes(decision)),
        )

    def decide(self, limit: float) -> Decision:
        """The test's first answer, going through the values in order."""
        decision = Decision(self.test, limit)
        for value in self.values:
            decision.push(value)
            if decision.answer is not None:
                break
        return decision

    @property
    def test(self) -> SequentialTest:
        return SequentialTest.of_percentile(self.p, self.alpha, self.beta)

    @property
    def point(self) -> float:
        """Nearest rank: the ⌈n·p⌉-th smallest value."""
        rank = math.ceil(round(len(self.values) * self.p, 9))
        return sorted(self.values)[max(1, rank) - 1]

    def _bound(self, decision: Decision) -> float:
        """The smallest limit that the values tested would have passed (+inf if none), or when they
        failed, the one below which every limit would have failed.
        """
        tested = sorted(self.values[: decision.n])
        if decision.answer is False:
            needed = self.test.fewest_violations_to_fail(decision.n)
            return 0.0 if needed is None else tested[decision.n - needed]
        allowed = self.test.most_violations_to_pass(decision.n)
        return math.inf if allowed is None else tested[decision.n - 1 - allowed]

    def _result(self, decision: Decision, bound: float) -> str:
        if decision.answer is True:
            return f"≤ {show(bound, 'ms')}"
        over = f"{decision.over:,} of {decision.n:,} over"
        if decision.answer is False:
            return f"≥ {show(bound, 'ms')}" if math.isfinite(bound) else f"{over}: they failed"
        point = f"about {show(self.point, 'ms')}" if math.isfinite(self.point) else "unbounded"
        return f"{point}, {over}"

    def _evidence(self, decision: Decision) -> dict[str, Any]:
        return {
            "source": self.source,
            "n": decision.n,
            "violations": decision.over,
            "failed": sum(not math.isfinite(value) for value in self.values[: decision.n]),
            "p": self.p,
            "alpha": self.alpha,
            "beta": self.beta,
            "test": "mixture e-process",
        }

    def _what_it_takes(self, decision: Decision) -> str:
        more = self.test.requests_to_pass(decision.over) - decision.n
        return (
            f"{decision.n:,} requests with {decision.over} over the limit decide nothing; it takes "
            f"{more:,} more without another one to pass: raise max_duration or the rate"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _margin(limit: float, bound: float) -> float | None:
    return (limit - bound) / limit if limit and math.isfinite(bound) else None
