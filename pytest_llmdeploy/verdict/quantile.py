"""The judgement on a percentile of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.units import show
from pytest_llmdeploy.verdict.decision import Decision
from pytest_llmdeploy.verdict.findings import (
    LONGER,
    counted,
    doubted,
    evidence,
    particulars,
    what_it_takes,
)
from pytest_llmdeploy.verdict.observation import Observation, weighted
from pytest_llmdeploy.verdict.rule import Rule
from pytest_llmdeploy.verdict.sequential import first


@dataclass(frozen=True)
class Quantile:
    """The p-quantile of `values` (one observation per request; ms), in order of arrival.

    "p99 ≤ limit" is the claim that at most 1 % of requests take longer, and that is what is
    tested; the first answer stands. The bound shown is the limit at which the same test would just
    decide. `problem` says why what was measured can't pass, `invalid` why it decides nothing:
    unless it fails without the `clients` ms, too, which are all that may be wrong with any value.
    `saved` is said in the row of what was decided before its time, `remedy` in that of what was
    not. `resolution` is the shortest limit (ms) that the client can judge.
    """

    values: Sequence[Observation]
    rule: Rule
    source: str = "client"
    problem: str = ""
    invalid: str = ""
    saved: str = ""
    resolution: float = 0.0
    clients: float = math.inf
    remedy: str = LONGER

    def at_most(self, limit: float, about: str = "") -> Judgement:
        """PASS or FAIL once the test decides, else INCONCLUSIVE; ERROR without any request."""
        if self.invalid and self.decide(limit + self.clients).answer is False:
            return doubted(self._spared().at_most(limit, about), self.invalid)
        requirement = " ".join(part for part in (f"≤ {show(limit, 'ms')}", about) if part)
        decision = self.decide(limit)
        found = {
            **evidence(decision, self.source, self.saved),
            "failed": sum(_has_failed(parts) for parts in self._parts[: decision.n]),
        }
        if spoilt := self._spoilt(decision, limit):
            status, result = spoilt
            return Judgement(
                status=status,
                requirement=requirement,
                result=result,
                limit=limit,
                unit="ms",
                evidence=found,
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
            evidence=found,
            hint=self.problem
            or ("" if decision.answer is not None else what_it_takes(decision, self.remedy)),
        )

    def decide(self, limit: float) -> Decision:
        """The test's first answer, going through the values in order."""
        return Decision.on(self.rule, limit, self.values)

    def _spared(self) -> Quantile:
        """Without what may be the client's."""
        parts = [[(value - self.clients, share) for value, share in each] for each in self._parts]
        return replace(self, values=parts, invalid="")

    @property
    def point(self) -> float:
        """Nearest rank: the smallest value that a share p of all is within."""
        ordered = sorted(part for parts in self._parts for part in parts)
        within = list(accumulate(share for _, share in ordered))
        needed = round(len(self.values) * self.rule.p, 9)
        rank = first(0, len(ordered) - 1, lambda at: round(within[at], 9) >= needed)
        return ordered[rank][0]

    @cached_property
    def _parts(self) -> Sequence[Sequence[tuple[float, float]]]:
        return [weighted(value) for value in self.values]

    def _spoilt(self, decision: Decision, limit: float) -> tuple[Status, str] | None:
        if self.invalid:
            return Status.INVALID, self.invalid
        if limit < self.resolution:
            finest = show(self.resolution, "ms")
            return (
                Status.INVALID,
                f"this client can't judge limits below {finest}: they are its own",
            )
        if not self.values or (self.problem and decision.answer is not False):
            return Status.ERROR, self.problem or "no request was measured"
        return None

    def _bound(self, decision: Decision) -> float:
        """The smallest limit that the values tested would have passed (+inf if none), or when they
        failed, the one below which every limit would have failed.
        """
        n, estimated, failed = decision.n, decision.estimated_effect, decision.answer is False

        def holds(over: float) -> bool:
            answer = self.rule.decide(n, over, estimated)
            return answer is not False if failed else answer is True

        falling = sorted((part for parts in self._parts[:n] for part in parts), reverse=True)
        over = [0.0, *accumulate(share for _, share in falling)]
        # At the limit falling[at] no more is over it than what comes before.
        first_bad = first(0, len(falling), lambda at: not holds(over[at]))
        return math.inf if first_bad == 0 else falling[first_bad - 1][0]

    def _result(self, decision: Decision, bound: float) -> str:
        if decision.answer is True:
            return f"≤ {show(bound, 'ms')} {particulars(decision, 'over', self.saved)}"
        if decision.answer is False and math.isfinite(bound):
            return f"≥ {show(bound, 'ms')} {particulars(decision, 'over', self.saved)}"
        if decision.answer is False:
            return f"{counted(decision)}: they failed"
        point = f"about {show(self.point, 'ms')}" if math.isfinite(self.point) else "unbounded"
        return f"{point}, {counted(decision)}"


def _has_failed(parts: Sequence[tuple[float, float]]) -> bool:
    return not any(math.isfinite(value) for value, _ in parts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _margin(limit: float, bound: float) -> float | None:
    return (limit - bound) / limit if limit and math.isfinite(bound) else None
