"""When requests arrive: one seeded schedule, computed up front."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pytest_llmdeploy.spec import Workload


def arrivals(workload: Workload) -> Sequence[float]:
    """Seconds from the start of the run at which an open-loop workload sends its requests.

    Gaps are gamma distributed with mean 1/rate; burstiness 1 is poisson, infinite is constant.
    """
    if workload.rate is None:
        return ()
    shape, mean = workload.arrival.gamma, 1 / workload.rate
    draw = random.Random(workload.seed)  # noqa: S311 - a schedule, not a secret
    times: list[float] = []
    now = 0.0
    while True:
        now += mean if math.isinf(shape) else draw.gammavariate(shape, mean / shape)
        if now >= workload.max_duration.seconds:
            return times
        times.append(now)


def dealt(times: Sequence[float], workers: int) -> Sequence[Sequence[tuple[int, float]]]:
    """The schedule in as many parts, each request with its number: all parts together are the
    schedule, whatever their number.
    """
    numbered = list(enumerate(times))
    return [numbered[worker::workers] for worker in range(workers)]
