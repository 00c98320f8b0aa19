"""Whether a server keeps up with what arrives, from the number of requests in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# One-sided 95 % of the normal distribution.
_Z95 = 1.645


KEEPS_UP = 0.98


@dataclass(frozen=True, slots=True)
class Service:
    """The share of what arrives that is served: the estimate, and what it is at least and most.

    `growth` and its `uncertainty` (one-sided, 95 %) are the backlog's, in requests per second.
    """

    share: float
    low: float
    high: float
    completed: float
    growth: float
    uncertainty: float

    @property
    def keeps_up(self) -> bool | None:
        """True, False, or None where the evidence is not enough for either."""
        if self.low >= KEEPS_UP:
            return True
        return False if self.high < KEEPS_UP else None


def service(
    completed: float,
    rate: float,
    intervals: Sequence[tuple[float, float]],
    start: float,
    end: float,
) -> Service:
    """How much is served of what arrives at `rate` per second over [start, end].

    `completed` is the fraction of requests that came back; what the backlog grows by is not served
    either.
    """
    growth, uncertainty = _growth(intervals, start, end)
    share, low, high = (
        completed - max(0.0, g) / rate for g in (growth, growth + uncertainty, growth - uncertainty)
    )
    return Service(share, low, high, completed, growth, uncertainty)


def _growth(
    intervals: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[float, float]:
    """Requests per second by which the backlog grows over [start, end], and its uncertainty.

    `intervals` are the (due, ended) times of the requests. The backlog of a stretch of time is the
    least that was in flight in it: a stall piles up requests, and a server that keeps up works them
    off again. The growth is that from the first third to the last; as a count, a backlog is
    uncertain by its root (one-sided, 95 %).
    """
    third = (end - start) / 3
    first = _least_in_flight(intervals, start, start + third)
    last = _least_in_flight(intervals, end - third, end)
    apart = 2 * third
    return (last - first) / apart, _Z95 * math.sqrt(max(first, last) + 1) / apart


def _least_in_flight(intervals: Sequence[tuple[float, float]], start: float, end: float) -> int:
    """The smallest number of requests in flight at any moment of [start, end]."""
    flying = sum(due <= start < ended for due, ended in intervals)
    # At the same moment, the one that ends leaves before the one that arrives comes.
    changes = [(due, 1) for due, _ in intervals if start < due < end]
    changes += [(ended, -1) for _, ended in intervals if start < ended < end]
    least = flying
    for _, change in sorted(changes):
        flying += change
        least = min(least, flying)
    return least
