"""The judgement on a share of requests, such as goodput: those that met all limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from pytest_llmdeploy.verdict.rule import Rule

_MISSED = "missed"
_STEPS = 40


@dataclass(frozen=True)
class Share:
    """The share of requests that are `good`, one flag per request in order of arrival.

    "At least p are good" is decided as a percentile is: those that are not are its violations.
    The bound shown is the share for which the same test would just decide; a test with an
    indifference zone has none. `problem`, `invalid`, `saved` and `remedy` are those of a
    `Quantile`; `spared` are the flags without what may be the client's.
    """

    good: Sequence[bool]
    rule: Rule
    source: str = "client"
    problem: str = ""
    invalid: str = ""
    saved: str = ""
    remedy: str = LONGER
    spared: Sequence[bool] = ()

    def at_least(self, about: str = "") -> Judgement:
        """PASS or FAIL once the test decides, else INCONCLUSIVE; ERROR without any request."""
        without = replace(self, good=self.spared, invalid="")
        if self.invalid and without.decide().answer is False:
            return doubted(without.at_least(about), self.invalid)
        share = show(self.rule.p, "fraction")
        requirement = " ".join(part for part in (f"≥ {share}", about) if part)
        decision = self.decide()
        found = evidence(decision, self.source, self.saved)
        if spoilt := self._spoilt(decision):
            status, result = spoilt
            return Judgement(
                status=status,
                requirement=requirement,
                result=result,
                limit=self.rule.p,
                unit="fraction",
                evidence=found,
            )
        bound = self._bound(decision)
        return judged(
            decision.answer,
            requirement,
            self._result(decision, bound),
            measured=self.point,
            bound=bound,
            limit=self.rule.p,
            unit="fraction",
            margin=None if bound is None else (bound - self.rule.p) / self.rule.p,
            evidence=found,
            hint=self.problem
            or (
                "" if decision.answer is not None else what_it_takes(decision, self.remedy, _MISSED)
            ),
        )

    def decide(self) -> Decision:
        """The test's first answer, going through the requests in order."""
        return Decision.on(self.rule, 0.0, (0.0 if good else 1.0 for good in self.good))

    @property
    def point(self) -> float:
        return sum(map(bool, self.good)) / len(self.good)

    def _spoilt(self, decision: Decision) -> tuple[Status, str] | None:
        if self.invalid:
            return Status.INVALID, self.invalid
        if not self.good or (self.problem and decision.answer is not False):
            return Status.ERROR, self.problem or "no request was measured"
        return None

    def _bound(self, decision: Decision) -> float | None:
        """The largest share that the requests tested would have passed (0 if none), or when they
        failed, the smallest that they would have failed.
        """
        if self.rule.indifference:
            return None
        failed, n, effect = decision.answer is False, decision.n, decision.design_effect

        def decides(p: float) -> bool:
            test = replace(self.rule, p=p).test
            judge = test.fails if failed else test.passes
            return judge(n / effect, decision.over / effect)

        if n < self.rule.least:
            return 0.0
        # Evidence for "at least p" falls with p, evidence against it grows.
        yes, no = (1.0, 0.0) if failed else (0.0, 1.0)
        for _ in range(_STEPS):
            middle = (yes + no) / 2
            yes, no = (middle, no) if decides(middle) else (yes, middle)
        return yes

    def _result(self, decision: Decision, bound: float | None) -> str:
        if decision.answer is None:
            return f"about {show(self.point, 'fraction')}, {counted(decision, _MISSED)}"
        sign = "≥" if decision.answer else "≤"
        told = show(self.rule.p if bound is None else bound, "fraction")
        return f"{sign} {told} {particulars(decision, _MISSED, self.saved)}"
