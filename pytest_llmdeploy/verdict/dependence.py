"""How much less a series tells than as many independent requests would."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_BLOCK = 200
_MOST_LAGS = 50
_MOST_BIAS = 0.5
_ROUNDING = 1e-12  # what is positive by rounding alone is not
_FIRST_PAIR = 2
_BITS = 8  # of a flag: a byte each, for bytes() makes them fastest
# Normal autocorrelation of any strength thins out like this, or faster (ρ from 0.3 to 0.95).
_THINNING = 0.3
_ESTIMATED_AT = 0.1


def design_effect(values: Sequence[float], levels: Iterable[float]) -> float:
    """D ≥ 1: so many requests in this order tell as much as one independent of the others.

    D is 1 + 2 × the sum of the autocorrelations of the flags "above the u-quantile", the largest
    over the levels u: it depends on the values alone, never on a limit, and the flags are many
    where violations are few. Quantiles and means are those of blocks of some 200 requests, so that
    a server which becomes faster in the middle of a run does not look like one long dependence.
    The sum ends where a pair of neighbouring autocorrelations is no longer positive (Geyer 1992,
    initial positive sequence), or after 50; what the block's own mean hides of it is added.
    An estimate, no bound: dependence that shows only in rarer values is not in it.
    """
    count = max(1, len(values) // _BLOCK)
    cuts = [len(values) * part // count for part in range(count + 1)]
    blocks = [values[start:end] for start, end in pairwise(cuts)]
    return max((_of_blocks(blocks, level) for level in levels), default=1.0)


def thinned(effect: float, allowed: float) -> float:
    """The design effect of events that come with the probability `allowed`, when one was estimated
    where they are more frequent: of normal autocorrelation, the rarer cluster less.
    """
    rarer = min(1.0, allowed / _ESTIMATED_AT)
    return 1 + (effect - 1) * math.pow(rarer, _THINNING)


def of_bursts(length: float) -> float:
    """The design effect of violations in bursts of geometric length with this mean.

    The number of violations then varies E[length²] / E[length] = 2 × mean - 1 times as much.
    """
    return 2 * length - 1


def burst_length(effect: float) -> float:
    """The mean length of the bursts that have this design effect."""
    return (effect + 1) / 2


def _flags(values: Sequence[float], ordered: Sequence[float], level: float) -> bytes:
    if not ordered:
        return b""
    threshold = ordered[max(1, math.ceil(round(len(ordered) * level, 9))) - 1]
    # Where nothing is above the quantile (many failed, or all are alike), it is itself the event.
    above = threshold.__lt__ if ordered[-1] > threshold else threshold.__le__
    return bytes(map(above, values))


@dataclass(frozen=True, slots=True)
class _Flags:
    """The flags of a block, also as a number of which each has eight bits."""

    each: bytes
    total: int
    packed: int

    @classmethod
    def of(cls, values: Sequence[float], level: float) -> _Flags:
        each = _flags(values, sorted(values), level)
        return cls(each, sum(each), int.from_bytes(each, "little"))

    @property
    def variance(self) -> float:
        return self.total - self.total**2 / max(1, len(self.each))

    def covariance(self, lag: int) -> float:
        """The sum of the products of deviations, so many requests apart."""
        n, mean = len(self.each), self.total / len(self.each)
        together = (self.packed & (self.packed >> _BITS * lag)).bit_count()
        apart = 2 * self.total - sum(self.each[:lag]) - sum(self.each[n - lag :])
        return together - mean * apart + (n - lag) * mean * mean


def _of_blocks(blocks: Sequence[Sequence[float]], level: float) -> float:
    flags = [block for values in blocks if (block := _Flags.of(values, level)).variance]
    if not flags:
        return 1.0
    variance = math.fsum(block.variance for block in flags)
    shortest = min(len(block.each) for block in flags)
    # The first pair is the variance itself and its neighbour.
    both, lag = 0.0, 0
    while lag <= min(shortest // 4, _MOST_LAGS):
        pair = math.fsum(block.covariance(at) for block in flags for at in (lag, lag + 1))
        if pair <= _ROUNDING * variance:
            break
        both, lag = both + pair / variance, lag + 2
    hidden = min(_MOST_BIAS, 2 * lag / shortest) if lag > _FIRST_PAIR else 0.0
    return max(1.0, (2 * both - 1) / (1 - hidden))
