"""How far a quantile of latencies has moved between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pytest_llmdeploy.verdict.dependence import design_effect
from pytest_llmdeploy.verdict.rule import Rule


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

    Each quantile is within its interval with 1 - (1 - confidence) / 2, so that both are with
    `confidence`, and with them their ratio: nothing is assumed of how latencies are distributed.
    """
    each = 1 - (1 - confidence) / 2
    before, after = interval(was, p, each), interval(now, p, each)
    if before is None or after is None:
        return None
    (low_was, high_was), (low_now, high_now) = before, after
    return Shift(
        _quantile(was, p), _quantile(now, p), _least(low_now, high_was), _most(high_now, low_was)
    )


def interval(values: Sequence[float], p: float, confidence: float) -> tuple[float, float] | None:
    """Two of the values, between which the p-quantile is; None when there are too few.

    The number of values below a quantile is binomial, of as many requests as the design effect
    leaves: its ranks there, as shares, are those of the values here.
    """
    rule = Rule(p)
    if len(values) < rule.least:
        return None
    effect = rule.effect(len(values), design_effect(values, rule.levels))
    effective = int(len(values) / effect)
    ranks = _ranks(effective, p, (1 - confidence) / 2)
    if ranks is None:
        return None
    ordered, scale = sorted(values), len(values) / effective
    lower, upper = (rank * scale for rank in ranks)
    return ordered[math.floor(lower) - 1], ordered[min(len(ordered), math.ceil(upper)) - 1]


def _ranks(n: int, p: float, tail: float) -> tuple[int, int] | None:
    """The ranks (from 1) of n independent values that are beyond the p-quantile, either way, with
    the probability `tail` at most; None when no rank is.
    """
    below = list(accumulate(_binomial(n, count, p) for count in range(n)))
    # The value of rank r is above the quantile when fewer than r values are below it.
    lower = sum(chance <= tail for chance in below)
    upper = next((count + 1 for count, chance in enumerate(below) if chance >= 1 - tail), None)
    return (lower, upper) if lower and upper else None


def _binomial(n: int, count: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
    return math.exp(ways + count * math.log(p) + (n - count) * math.log1p(-p))


def _quantile(values: Sequence[float], p: float) -> float:
    """Nearest rank."""
    return sorted(values)[max(1, math.ceil(round(len(values) * p, 9))) - 1]


def _least(now: float, was: float) -> float:
    return now / was if was and math.isfinite(was) else 0.0


def _most(now: float, was: float) -> float:
    return now / was if was and math.isfinite(now) else math.inf
