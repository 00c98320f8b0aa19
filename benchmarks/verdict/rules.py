"""Ways to decide a percentile, each from a series in order of arrival with the limit 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from pytest_llmdeploy.verdict import Decision, Rule

Answer = tuple[bool | None, int]
"""Pass, fail or neither, and after how many requests."""

Decide = Callable[[Sequence[float]], Answer]


@dataclass(frozen=True)
class Ours:
    """The package's own rule, until it decides or the series ends."""

    rule: Rule

    def __call__(self, values: Sequence[float]) -> Answer:
        decision = Decision(self.rule, limit=0.0)
        for value in values:
            decision.push(value)
            if decision.answer is not None:
                break
        return decision.look(), decision.n


@dataclass(frozen=True)
class Observed:
    """The observed percentile (nearest rank) of the first `n` requests against the limit."""

    p: float
    n: int

    def __call__(self, values: Sequence[float]) -> Answer:
        rank = math.ceil(round(self.n * self.p, 9))
        return sorted(values[: self.n])[rank - 1] <= 0, self.n


@dataclass(frozen=True)
class Binomial:
    """Clopper-Pearson at a number of requests that was fixed before, one-sided each way."""

    p: float
    n: int
    alpha: float = 0.05

    def __call__(self, values: Sequence[float]) -> Answer:
        over = _over(values[: self.n])
        if _at_most(over, self.n, self.p) <= self.alpha:
            return True, self.n
        fails = over and 1 - _at_most(over - 1, self.n, self.p) <= self.alpha
        return False if fails else None, self.n


@dataclass(frozen=True)
class EarlyStopping:
    """MLPerf LoadGen's: valid when so few violations at the fraction 1 - p have a probability of
    at most 1 %, looked at once after `n` requests. What is not valid may be run again.
    """

    p: float
    n: int
    confidence: float = 0.99

    def __call__(self, values: Sequence[float]) -> Answer:
        unlikely = _at_most(_over(values[: self.n]), self.n, self.p) <= 1 - self.confidence
        return True if unlikely else None, self.n


def _over(values: Sequence[float]) -> int:
    return sum(value > 0 for value in values)


@cache
def _at_most(over: int, n: int, p: float) -> float:
    """The probability of no more than `over` violations in `n`, at the fraction 1 - p."""
    bad = round(1 - p, 9)
    return math.fsum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(bad)
            + (n - k) * math.log1p(-bad)
        )
        for k in range(over + 1)
    )
