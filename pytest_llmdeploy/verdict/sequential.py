"""An anytime-valid test on the fraction of requests over a limit.

Two mixtures of likelihood ratios, one against "the fraction is q0 or more" and one against "q0 or
less", are non-negative supermartingales under what they speak against; by Ville's inequality each
exceeds 1/alpha with probability at most alpha, whenever one looks and however long one waits.
Holds for requests whose violation, given the past, has at least (at most) the probability q0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

_PASS_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
_PASS_WEIGHTS = (0.2, *(0.1,) * 8)
_FAIL_SHARES = (1.125, 1.25, 1.5, 2, 3, 4, 8, 16, 32)


@dataclass(frozen=True)
class SequentialTest:
    """Decides whether at most the fraction `allowed` of requests violates a limit.

    `alpha` bounds the probability of ever passing a deployment at or over the fraction, `beta`
    that of ever failing one at or under it.
    """

    allowed: float
    alpha: float
    beta: float

    @classmethod
    def of_percentile(cls, p: float, alpha: float, beta: float) -> SequentialTest:
        """The test of "the p-quantile is within the limit"; one instance per distinct test."""
        # 1 - 0.99 is 0.010000000000000009: the claim is on 1 %.
        return _shared_test(round(1 - p, 9), alpha, beta)

    def decide(self, requests: int, violations: int) -> bool | None:
        """True: pass. False: fail. None: not enough evidence for either."""
        if self.log_evidence_for(requests, violations) >= -math.log(self.alpha):
            return True
        if self.log_evidence_against(requests, violations) >= -math.log(self.beta):
            return False
        return None

    def log_evidence_for(self, requests: int, violations: int) -> float:
        return _log_mixture(self._pass_atoms, requests, violations)

    def log_evidence_against(self, requests: int, violations: int) -> float:
        return _log_mixture(self._fail_atoms, requests, violations)

    def most_violations_to_pass(self, requests: int) -> int | None:
        """The largest number of violations among `requests` that still passes, if any."""
        first_bad = _first(0, requests + 1, lambda k: self.decide(requests, k) is not True)
        return None if first_bad == 0 else first_bad - 1

    def fewest_violations_to_fail(self, requests: int) -> int | None:
        """The smallest number of violations among `requests` that fails, if any."""
        first = _first(0, requests + 1, lambda k: self.decide(requests, k) is False)
        return None if first > requests else first

    def requests_to_pass(self, violations: int = 0) -> int:
        """How many requests, `violations` of them bad, it takes to pass."""
        high = 64
        while self.decide(high, violations) is not True:
            high *= 2
        return _first(violations, high, lambda n: self.decide(n, violations) is True)

    @cached_property
    def _pass_atoms(self) -> Sequence[tuple[float, float, float]]:
        return [
            _atom(weight, share * self.allowed, self.allowed)
            for weight, share in zip(_PASS_WEIGHTS, _PASS_SHARES, strict=True)
        ]

    @cached_property
    def _fail_atoms(self) -> Sequence[tuple[float, float, float]]:
        q0 = self.allowed
        # Halfway from q0 to 1 is always there; a large q0 leaves few multiples under 1.
        points = {q0 * share for share in _FAIL_SHARES if q0 * share < 1} | {(1 + q0) / 2}
        return [_atom(1 / len(points), point, q0) for point in sorted(points)]


@dataclass
class Decision:
    """A test on its way through the requests: after `n`, `over` of them over the limit, its answer
    (None: not yet). The first answer stands.
    """

    test: SequentialTest
    limit: float
    n: int = 0
    over: int = 0
    answer: bool | None = None

    def push(self, value: float) -> None:
        """The next request; what is not a number is over the limit."""
        if self.answer is None:
            self.n += 1
            self.over += not value <= self.limit
            self.answer = self.test.decide(self.n, self.over)


@cache
def _shared_test(allowed: float, alpha: float, beta: float) -> SequentialTest:
    return SequentialTest(allowed, alpha, beta)


def _atom(weight: float, q: float, q0: float) -> tuple[float, float, float]:
    """The log weight, and the log likelihood ratios of a violation and of a good request."""
    per_violation = math.log(q / q0) if q > 0 else -math.inf
    return math.log(weight), per_violation, math.log1p(-q) - math.log1p(-q0)


def _log_mixture(
    atoms: Sequence[tuple[float, float, float]], requests: int, violations: int
) -> float:
    terms = [
        log_weight + (violations * bad if violations else 0.0) + (requests - violations) * good
        for log_weight, bad, good in atoms
    ]
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first whole number in [low, high) for which the monotone `holds` is true, else high."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
