"""Latencies with a known fraction over the limit, which is 0: a value above it violates.

Every rule here looks at ranks alone, so that which distribution the latencies have is no matter;
only how they depend on each other is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

Series = Callable[[random.Random, int], Sequence[float]]


@dataclass(frozen=True)
class Autoregressive:
    """Gaussian AR(1) with the coefficient `rho` (0: independent)."""

    rho: float
    over: float

    def __call__(self, chance: random.Random, n: int) -> Sequence[float]:
        limit = NormalDist().inv_cdf(1 - self.over)
        fresh, draw = math.sqrt(1 - self.rho**2), chance.gauss
        value, values = draw(0, 1), []
        for _ in range(n):
            values.append(value - limit)
            value = self.rho * value + fresh * draw(0, 1)
        return values


@dataclass(frozen=True)
class Bursts:
    """Violations come in bursts of geometric length; what is between them is independent."""

    length: float
    over: float

    def __call__(self, chance: random.Random, n: int) -> Sequence[float]:
        leave = 1 / self.length
        enter = leave * self.over / (1 - self.over)
        draw, values = chance.random, []
        bad = draw() < self.over
        for _ in range(n):
            values.append(1 + draw() if bad else -1 - draw())
            bad = draw() >= leave if bad else draw() < enter
        return values
