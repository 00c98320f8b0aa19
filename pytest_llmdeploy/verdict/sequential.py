"""An anytime-valid test on the fraction of requests over a limit.

Two mixtures of likelihood ratios, one against "the fraction is q0 or more" and one against "q0 or
less", are non-negative supermartingales under what they speak against; by Ville's inequality each
exceeds 1/alpha with probability at most alpha, whenever one looks and however long one waits.
Holds for requests whose violation, given the past, has at least (at most) the probability q0.

A violation may also be a part of a request, from 0 to 1: a likelihood ratio is convex in it, so
that its expectation is no larger than that of a whole violation with the same mean, and what
exceeds 1/alpha so rarely for whole ones does so no more often for parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_PASS_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
_PASS_WEIGHTS = (0.2, *(0.1,) * 8)
_FAIL_SHARES = (1.125, 1.25, 1.5, 2, 3, 4, 8, 16, 32)

Atom = tuple[float, float, float]


@dataclass(frozen=True)
class SequentialTest:
    """Decides whether at most the fraction `allowed` of requests violates a limit.

    `alpha` bounds the probability of ever passing a deployment at or over the fraction, `beta`
    that of ever failing one at or under it. With `indifference` (good, bad) it is Wald's test of
    the two: `alpha` bounds that of passing at or over `bad`, `beta` that of failing at or under
    `good`, and between them either answer is accepted.

    Numbers of requests and of violations are real: those of a dependent series are divided by its
    design effect.
    """

    allowed: float
    alpha: float
    beta: float
    indifference: tuple[float, float] | None = None

    def decide(self, requests: float, violations: float) -> bool | None:
        """True: pass. False: fail. None: not enough evidence for either."""
        if self.passes(requests, violations):
            return True
        return False if self.fails(requests, violations) else None

    def passes(self, requests: float, violations: float) -> bool:
        return self.log_evidence_for(requests, violations) >= -math.log(self.alpha)

    def fails(self, requests: float, violations: float) -> bool:
        return self.log_evidence_against(requests, violations) >= -math.log(self.beta)

    def log_evidence_for(self, requests: float, violations: float) -> float:
        return log_mixture(self._pass_atoms, requests, violations)

    def log_evidence_against(self, requests: float, violations: float) -> float:
        return log_mixture(self._fail_atoms, requests, violations)

    @cached_property
    def _pass_atoms(self) -> Sequence[Atom]:
        if self.indifference:
            good, bad = self.indifference
            return [atom(1, good, bad)]
        return [
            atom(weight, share * self.allowed, self.allowed)
            for weight, share in zip(_PASS_WEIGHTS, _PASS_SHARES, strict=True)
        ]

    @cached_property
    def _fail_atoms(self) -> Sequence[Atom]:
        if self.indifference:
            good, bad = self.indifference
            return [atom(1, bad, good)]
        q0 = self.allowed
        # Halfway from q0 to 1 is always there; a large q0 leaves few multiples under 1.
        points = {q0 * share for share in _FAIL_SHARES if q0 * share < 1} | {(1 + q0) / 2}
        return [atom(1 / len(points), point, q0) for point in sorted(points)]


def first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first whole number in [low, high) for which the monotone `holds` is true, else high."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def atom(weight: float, q: float, q0: float) -> Atom:
    """The log weight, and the log likelihood ratios of a violation and of a good request."""
    per_violation = math.log(q / q0) if q > 0 else -math.inf
    return math.log(weight), per_violation, math.log1p(-q) - math.log1p(-q0)


def log_mixture(atoms: Sequence[Atom], requests: float, violations: float) -> float:
    terms = [
        log_weight + (violations * bad if violations else 0.0) + (requests - violations) * good
        for log_weight, bad, good in atoms
    ]
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))
