"""Whether a quantile of latencies is worse than it was in an earlier run, beyond a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.units import change, show
from pytest_llmdeploy.verdict.decision import Decision
from pytest_llmdeploy.verdict.dependence import design_effect
from pytest_llmdeploy.verdict.findings import told, what_it_takes
from pytest_llmdeploy.verdict.observation import Observation
from pytest_llmdeploy.verdict.quantile import Quantile
from pytest_llmdeploy.verdict.rule import Rule
from pytest_llmdeploy.verdict.shift import bounds, point

_LONGER = "make it with a longer min_duration"


@dataclass(frozen=True, slots=True)
class Tolerated:
    """A quantile may be so much longer (a fraction) than in an earlier run, of which `was` are the
    bounds (ms), each wrong with half of what the rule leaves for a wrong PASS and a wrong FAIL.

    The later run is held against them with the other half: it passes when it is `within` the lower
    one and the tolerance, and fails when it is `beyond` the upper one and the tolerance.
    """

    rule: Rule
    was: tuple[float, float]
    tolerance: float

    @classmethod
    def of(cls, earlier: Sequence[float], rule: Rule, tolerance: float) -> Self:
        """From the latencies of the earlier run (ms), in order of arrival."""
        half = replace(rule, alpha=rule.alpha / 2, beta=rule.beta / 2)
        return cls(half, bounds(earlier, _of_earlier(half)), tolerance)

    @property
    def within(self) -> float:
        """The limit (ms) that must hold to pass."""
        return self.was[0] * (1 + self.tolerance)

    @property
    def beyond(self) -> float:
        """The limit (ms) that must not hold to fail; +inf when nothing is known of it."""
        return self.was[1] * (1 + self.tolerance)


@dataclass
class Corridor:
    """A percentile on its way, which passes within one limit and fails beyond another."""

    within: Decision
    beyond: Decision

    @classmethod
    def on(cls, tolerated: Tolerated, rule: Rule) -> Self:
        return cls(Decision(rule, tolerated.within), Decision(rule, tolerated.beyond))

    def push(self, observation: Observation) -> None:
        """The next request."""
        self.within.push(observation)
        self.beyond.push(observation)

    @property
    def answer(self) -> bool | None:
        """None when there is none yet, or never: see `is_over`."""
        if self.within.answer:
            return True
        return False if self.beyond.answer is False else None

    @property
    def is_over(self) -> bool:
        """Whether more requests change nothing: between the limits, they never will."""
        answers = self.within.answer, self.beyond.answer
        return self.answer is not None or answers == (False, True)


def _of_earlier(rule: Rule) -> Rule:
    """The rule for the earlier run: a zone of indifference does not say how well it is known, and
    the time before which nothing is decided is that of the later one.
    """
    return Rule(rule.p, rule.alpha, rule.beta, rule.burst)


def regression(now: Quantile, earlier: Sequence[float], tolerance: float) -> Judgement:
    """Whether a quantile is longer by no more than `tolerance` (a fraction) than it was in the
    `earlier` run (ms, in order of arrival): PASS or FAIL once both runs tell it, else INCONCLUSIVE.
    """
    tolerated = Tolerated.of(earlier, now.rule, tolerance)
    now = replace(now, rule=tolerated.rule)
    within, beyond = now.at_most(tolerated.within), now.at_most(tolerated.beyond)
    requirement = f"≤ baseline {change(1 + tolerance)}"
    low, high = tolerated.was
    if beyond.status is Status.FAIL:
        good, decisive, edge = False, beyond, high
    elif low and within.status is Status.PASS:
        good, decisive, edge = True, within, low
    else:  # a baseline that is too short gives no limit to be within
        good, decisive, edge = None, within if low else beyond, 0.0
    if decisive.status in (Status.INVALID, Status.ERROR):
        return replace(decisive, requirement=requirement, limit=tolerance, unit="fraction")
    was, is_ = point(earlier, now.rule.p) if earlier else math.inf, now.point
    moved, bound = _ratio(is_, was), _ratio(decisive.bound or math.inf, edge)
    return judged(
        good,
        requirement,
        _moved(good, moved, bound) + f"{show(was, 'ms')} → {show(is_, 'ms')}",
        measured=None if moved is None else moved - 1,
        bound=None if bound is None else bound - 1,
        limit=tolerance,
        unit="fraction",
        margin=None if bound is None else tolerance - (bound - 1),
        evidence={
            **decisive.evidence,
            "baseline": {"n": len(earlier), "point": was, "bounds": tolerated.was},
        },
        hint=decisive.hint if good is not None else _what_it_takes(now, tolerated, earlier),
    )


def _moved(good: bool | None, moved: float | None, bound: float | None) -> str:
    """By how much it has moved; empty where a run failed, and there is no such figure."""
    if good is not None and bound is not None:
        return f"{'≤' if good else '≥'} {change(bound)}: "
    return "" if moved is None else f"about {change(moved)}: "


def _ratio(now: float, was: float) -> float | None:
    """None unless both are known."""
    return now / was if was and math.isfinite(was) and math.isfinite(now) else None


def _what_it_takes(now: Quantile, tolerated: Tolerated, earlier: Sequence[float]) -> str:
    """Why the two runs do not tell, and what would."""
    low, high = tolerated.was
    if not low:
        rule = _of_earlier(tolerated.rule)
        effect = rule.effect(len(earlier), design_effect(earlier, rule.levels))
        return f"the baseline's {told(len(earlier), effect)} do not tell what it was: {_LONGER}"
    decision, other = now.decide(tolerated.within), now.decide(tolerated.beyond)
    if decision.answer is None:
        return what_it_takes(decision, now.remedy)
    between = f"the baseline tells no more than that it was {show(low, 'ms')} to {show(high, 'ms')}"
    if other.answer is None:
        sent = told(other.n, other.design_effect)
        beyond = f"{sent} do not tell whether it is beyond that and the tolerance"
        return f"{between}, and {beyond}: {now.remedy}"
    return f"{between}: {_LONGER}"
