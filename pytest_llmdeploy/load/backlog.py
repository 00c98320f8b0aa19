"""Whether a server keeps up with what arrives, from the number of requests in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_BINS = 12
# One-sided 95 % of Student's t at _BINS - 2 degrees of freedom.
_T95 = 1.812


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

    `intervals` are the (due, ended) times of the requests. The slope is the least-squares one
    through the mean number in flight in equal bins; the uncertainty is one-sided at 95 %.
    """
    width = (end - start) / _BINS
    middles = [width * (index + 0.5) for index in range(_BINS)]
    means = [
        _mean_in_flight(intervals, start + index * width, start + (index + 1) * width)
        for index in range(_BINS)
    ]
    time_mean, flight_mean = math.fsum(middles) / _BINS, math.fsum(means) / _BINS
    spread = math.fsum((t - time_mean) ** 2 for t in middles)
    pairs = list(zip(middles, means, strict=True))
    slope = math.fsum((t - time_mean) * (m - flight_mean) for t, m in pairs) / spread
    left = math.fsum((m - flight_mean - slope * (t - time_mean)) ** 2 for t, m in pairs)
    return slope, _T95 * math.sqrt(left / (_BINS - 2) / spread)


def _mean_in_flight(intervals: Sequence[tuple[float, float]], start: float, end: float) -> float:
    overlap = (min(end, ended) - max(start, due) for due, ended in intervals)
    return math.fsum(length for length in overlap if length > 0) / (end - start)
