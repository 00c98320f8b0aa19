"""How a percentile is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_llmdeploy.verdict.dependence import burst_length, of_bursts, thinned
from pytest_llmdeploy.verdict.sequential import SequentialTest, first

_LEAST = 100
# An estimate from requests that are not many times as many as itself is too small too often. So
# much is added, as a multiple of (estimate - 1) / requests: simulated in benchmarks/verdict.
_DOUBT = 30
_EVENTS = 10  # so many requests above a quantile, per violation that is allowed


def beta_for(confidence: float, claims: int) -> float:
    """The probability of a wrong FAIL left for each of `claims` requirements.

    A spec fails when one of them does, so they share it; it passes only when all do, so that
    each may be as wrong about a PASS as the whole: alpha is 1 - confidence for every one.
    """
    return round(1 - confidence, 9) / max(1, claims)


@dataclass(frozen=True)
class Rule:
    """Decides "at most the fraction 1 - p of requests is over the limit".

    `alpha` and `beta` are the probabilities of a wrong PASS and a wrong FAIL; `burst` is the mean
    length, in requests, of the bursts of violations that it must hold against; `indifference`
    are the fractions of violations (good, bad) between which either answer will do; `least` is the
    number of requests before which nothing is decided.
    """

    p: float
    alpha: float = 0.05
    beta: float = 0.05
    burst: float = 1.0
    indifference: tuple[float, float] | None = None
    least: int = _LEAST

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in (self.p, self.alpha, self.beta)):
            raise ValueError(f"{self}: p, alpha and beta are between 0 and 1")
        if not self.burst >= 1:
            raise ValueError(f"{self}: a burst is one request or longer")
        if self.indifference and not 0 < self.indifference[0] < self.indifference[1] < 1:
            raise ValueError(f"{self}: indifference is (good, bad) with 0 < good < bad < 1")

    @cached_property
    def test(self) -> SequentialTest:
        # 1 - 0.99 is 0.010000000000000009: the claim is on 1 %.
        return SequentialTest(round(1 - self.p, 9), self.alpha, self.beta, self.indifference)

    @property
    def levels(self) -> Sequence[float]:
        """The quantiles around which dependence is looked for, both between p50 and p90.

        One where ten times as many requests lie above as p allows violations, so that these hardly
        shape the estimate, and one near p itself.
        """
        apart = min(max(round(1 - _EVENTS * (1 - self.p), 9), 0.5), 0.9)
        return sorted({apart, min(max(self.p, 0.75), 0.9)})

    @property
    def least_effect(self) -> float:
        """The design effect of the declared bursts."""
        return of_bursts(self.burst)

    def effect(self, requests: int, estimated: float) -> float:
        """What that many requests are divided by, with this estimate of their design effect."""
        doubted = estimated * (1 + _DOUBT * (estimated - 1) / max(requests, 1))
        return max(thinned(doubted, 1 - self.p), self.least_effect)

    def next_look(self, requests: int) -> int:
        """After how many requests to look again: every look estimates the dependence anew."""
        return max(self.least, requests + max(10, requests // 20))

    def decide(self, requests: int, violations: float, estimated: float) -> bool | None:
        """The answer for a series with this estimate of its design effect."""
        if requests < self.least:
            return None
        effect = self.effect(requests, estimated)
        return self.test.decide(requests / effect, violations / effect)

    def requests_to_pass(self, violations: float = 0, estimated: float = 1.0) -> int:
        """How many requests, `violations` of them over the limit, it takes to pass."""

        def enough(requests: int) -> bool:
            effect = self.effect(requests, estimated)
            return self.test.passes(requests / effect, violations / effect)

        low = max(self.least, math.ceil(violations))
        high = low
        while not enough(high):
            high *= 2
        return first(low, high, enough)

    def longest_burst(self, requests: int, violations: float, effect: float) -> float:
        """The longest bursts, in mean, against which a PASS with this design effect holds."""
        # Evidence is convex in 1 / effect and 0 at 0, so that it falls as the effect grows.
        low, high = effect, effect
        while self.test.passes(requests / high, violations / high):
            low, high = high, 2 * high
        for _ in range(30):
            middle = (low + high) / 2
            if self.test.passes(requests / middle, violations / middle):
                low = middle
            else:
                high = middle
        return burst_length(low)
