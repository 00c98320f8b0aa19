"""Arrivals have the distribution that the spec names."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, pvariance

import pytest

from pytest_llmdeploy.load.arrivals import arrivals
from tests.load.workloads import workload

RATE, SECONDS = 50.0, 600.0
# The 99 % point of Kolmogorov's distribution.
KOLMOGOROV = 1.628


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


@pytest.mark.parametrize("seed", range(3))
def test_poisson(seed: int) -> None:
    """Rate and dispersion are a Poisson process's, and the gaps pass Kolmogorov and Smirnov."""
    moments = times(seed)
    count = len(moments)
    assert abs(count - RATE * SECONDS) < 4 * math.sqrt(RATE * SECONDS)
    assert dispersion(moments) == pytest.approx(1, abs=0.25)
    expected = [1 - math.exp(-RATE * gap) for gap in sorted(gaps(moments))]
    distance = max(
        max((rank + 1) / count - value, value - rank / count) for rank, value in enumerate(expected)
    )
    assert distance * math.sqrt(count) < KOLMOGOROV


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
