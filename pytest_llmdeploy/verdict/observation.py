"""What one request contributes to a percentile: one latency, or weighted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

Observation = float | Sequence[tuple[float, float]]
"""A latency in ms, +inf for a request that failed; or [(ms, weight)], such as the gaps between
token events with the tokens of each. Weights are normalised to 1 per request.
"""


def weighted(observation: Observation) -> list[tuple[float, float]]:
    """The (ms, share of the request); what is not a number is infinitely slow.

    Raises:
        ValueError: without any weight: such a request has no latency of this kind.
    """
    if isinstance(observation, int | float):
        return [(_number(observation), 1)]
    total = math.fsum(weight for _, weight in observation)
    if not total > 0 or any(weight < 0 for _, weight in observation):
        raise ValueError("an observation needs weights of 0 or more, and one above 0")
    return [(_number(value), weight / total) for value, weight in observation if weight]


def over(parts: Sequence[tuple[float, float]], limit: float) -> float:
    """The share, from 0 to 1, of a request that is over the limit."""
    if len(parts) == 1:
        return 1 if parts[0][0] > limit else 0
    shares = [share for value, share in parts if value > limit]
    return 1 if len(shares) == len(parts) else math.fsum(shares) if shares else 0


def mean(parts: Sequence[tuple[float, float]]) -> float:
    """The request's value in a series: dependence between requests is looked for in it."""
    return parts[0][0] if len(parts) == 1 else math.fsum(value * share for value, share in parts)


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value
