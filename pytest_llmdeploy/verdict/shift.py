"""How far a quantile of latencies has moved between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmdeploy.verdict.dependence import design_effect
from pytest_llmdeploy.verdict.rule import Rule
from pytest_llmdeploy.verdict.sequential import first


@dataclass(frozen=True, slots=True)
class Shift:
    """The p-quantile of two runs (ms, +inf when so many failed), and between which factors `low`
    and `high` the later one is of the earlier one; 0 and +inf where nothing bounds it.
    """

    was: float
    now: float
    low: float
    high: float


def shift(was: Sequence[float], now: Sequence[float], p: float, confidence: float) -> Shift | None:
    """The shift of the p-quantile (both in order of arrival); None when one has too few requests.

    Each of the four bounds is wrong with a quarter of 1 - confidence at most: both quantiles are
    within theirs with `confidence`, and with them their ratio. Nothing is assumed of how latencies
    are distributed, nor of why a run ended when it did.
    """
    tail = (1 - confidence) / 4
    rule = Rule(p, alpha=tail, beta=tail)
    if min(len(was), len(now)) < rule.requests_to_pass():
        return None
    (low_was, high_was), (low_now, high_now) = bounds(was, rule), bounds(now, rule)
    return Shift(point(was, p), point(now, p), _least(low_now, high_was), _most(high_now, low_was))


def bounds(values: Sequence[float], rule: Rule) -> tuple[float, float]:
    """Two of the values (in order of arrival), between which the rule's quantile is: below the
    first every limit fails by its test, and at the second the first limit passes; 0 and +inf where
    none does. They are wrong with the probabilities beta and alpha at most.
    """
    effect = rule.effect(len(values), design_effect(values, rule.levels))
    n, ordered = len(values), sorted(values)

    def fails(over: int) -> bool:
        return rule.test.fails(n / effect, over / effect)

    def passes(over: int) -> bool:
        return rule.test.passes(n / effect, over / effect)

    if n < rule.least:
        return 0.0, math.inf
    lower = first(0, n, lambda rank: not fails(n - rank))
    upper = first(0, n, lambda rank: passes(n - 1 - rank))
    return ordered[lower - 1] if lower else 0.0, ordered[upper] if upper < n else math.inf


def point(values: Sequence[float], p: float) -> float:
    """The p-quantile by nearest rank."""
    return sorted(values)[max(1, math.ceil(round(len(values) * p, 9))) - 1]


def _least(now: float, was: float) -> float:
    return now / was if was and math.isfinite(was) else 0.0


def _most(now: float, was: float) -> float:
    return now / was if was and math.isfinite(now) else math.inf
