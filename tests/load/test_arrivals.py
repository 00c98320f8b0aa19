"""Arrivals have the distribution that the spec names."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from statistics import fmean, pvariance
from typing import Any

import pytest

from pytest_llmdeploy.load.arrivals import arrivals, dealt
from tests.load.workloads import workload

RATE, SECONDS = 50.0, 600.0
# The 99 % point of Kolmogorov's distribution.
KOLMOGOROV = 1.628


DISTRIBUTIONS: dict[str, Any] = {
    "poisson": "poisson",
    "constant": "constant",
    "bursty": {"gamma": 0.5},
    "even": {"gamma": 4.0},
}

# The distribution of a gamma deviate of shape 1, 1/2 and 4.
GAMMA: dict[str, Callable[[float], float]] = {
    "poisson": lambda x: 1 - math.exp(-x),
    "bursty": lambda x: math.erf(math.sqrt(x)),
    "even": lambda x: 1 - math.exp(-x) * (1 + x + x**2 / 2 + x**3 / 6),
}


def times(seed: int = 0, **overrides: object) -> list[float]:
    given = {"rate": f"{RATE}/s", "max_duration": f"{SECONDS}s", "seed": seed, **overrides}
    return list(arrivals(workload(**given)))


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *moments])]


def dispersion(moments: list[float]) -> float:
    """Variance over mean of the counts per second."""
    counts = [0] * int(SECONDS)
    for moment in moments:
        counts[int(moment)] += 1
    return pvariance(counts) / fmean(counts)


def distance(values: list[float], distribution: Callable[[float], float]) -> float:
    """Kolmogorov and Smirnov's distance of a sample from a distribution, times √n."""
    count = len(values)
    expected = [distribution(value) for value in sorted(values)]
    return math.sqrt(count) * max(
        max((rank + 1) / count - value, value - rank / count) for rank, value in enumerate(expected)
    )


@pytest.mark.parametrize("seed", range(3))
def test_poisson(seed: int) -> None:
    """Rate and dispersion are a Poisson process's, and the gaps pass Kolmogorov and Smirnov."""
    moments = times(seed)
    count = len(moments)
    assert abs(count - RATE * SECONDS) < 4 * math.sqrt(RATE * SECONDS)
    assert dispersion(moments) == pytest.approx(1, abs=0.25)
    assert distance(gaps(moments), lambda gap: 1 - math.exp(-RATE * gap)) < KOLMOGOROV


def test_constant() -> None:
    """Constant arrivals are all one gap apart."""
    moments = times(arrival="constant")
    assert len(moments) == pytest.approx(RATE * SECONDS, abs=1)
    assert gaps(moments) == pytest.approx([1 / RATE] * len(moments))
    assert dispersion(moments) < 0.01


@pytest.mark.parametrize("shape", [0.25, 4.0])
def test_gamma(shape: float) -> None:
    """A burstiness changes how gaps vary (variance = mean² / shape), and not their mean."""
    found = gaps(times(arrival={"gamma": shape}))
    assert fmean(found) * RATE == pytest.approx(1, rel=0.05)
    assert pvariance(found) / fmean(found) ** 2 == pytest.approx(1 / shape, rel=0.1)


def test_the_seed_makes_the_schedule() -> None:
    """The same seed sends at the same moments; another does not."""
    assert times(seed=7) == times(seed=7)
    assert times(seed=7) != times(seed=8)


def test_all_is_sent_in_order_and_in_time() -> None:
    """Nothing is due before the start, or at or after the end."""
    moments = times()
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < SECONDS


def test_a_closed_loop_has_no_schedule() -> None:
    """With a concurrency, requests are sent when others end."""
    assert arrivals(workload(concurrency=4)) == ()


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_all_workers_send_together_is_the_declared_process(name: str, workers: int) -> None:
    """Merged again, the parts of 1, 2 and 8 workers are one schedule, with the index of dispersion
    (1 / shape, for windows far longer than a gap) and the gaps of the distribution.
    """
    given = {"rate": f"{RATE}/s", "max_duration": f"{SECONDS}s", "arrival": DISTRIBUTIONS[name]}
    work = workload(**given)
    parts = dealt(arrivals(work), workers)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    merged = sorted(request for part in parts for request in part)
    assert [number for number, _ in merged] == list(range(len(merged)))
    moments = [moment for _, moment in merged]
    assert moments == times(arrival=DISTRIBUTIONS[name])
    shape = work.arrival.gamma
    assert dispersion(moments) == pytest.approx(1 / shape, rel=0.2, abs=0.02)
    if name in GAMMA:
        found = distance(gaps(moments), lambda gap: GAMMA[name](shape * RATE * gap))
        assert found < KOLMOGOROV


@pytest.mark.parametrize("workers", [2, 8])
def test_a_schedule_of_each_worker_s_own_would_be_noticed(workers: int) -> None:
    """The mistake to be excluded: workers that each draw the same gaps and add them to one clock,
    so that every gap comes as often as there are workers.
    """
    repeated = [gap for gap in gaps(times()) for _ in range(workers)]
    moments = [moment for moment in accumulate(repeated) if moment < SECONDS]
    assert dispersion(moments) > 0.8 * workers
