"""The design effect is what theory says, and does not look at limits."""

import math
import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.verdict.series import Autoregressive, Bursts
from pytest_llmdeploy.verdict.dependence import burst_length, design_effect, of_bursts, thinned

FLOATS = st.floats(0, 1e6)


def naive(values: list[float], level: float) -> float:
    """The definition, written out for series of a block or two."""
    parts = max(1, len(values) // 200)
    cuts = [len(values) * part // parts for part in range(parts + 1)]
    blocks = [centred for a, b in pairwise(cuts) if any(centred := deviations(values[a:b], level))]
    if not blocks:
        return 1.0
    shortest = min(map(len, blocks))
    variance = math.fsum(c * c for block in blocks for c in block)

    def autocorrelation(lag: int) -> float:
        products = [a * b for block in blocks for a, b in zip(block, block[lag:], strict=False)]
        return math.fsum(products) / variance

    total, lag = 0.0, 0
    while lag <= min(shortest // 4, 50):
        pair = autocorrelation(lag) + autocorrelation(lag + 1)
        if pair <= 1e-12:
            break
        total, lag = total + pair, lag + 2
    hidden = min(0.5, 2 * lag / shortest) if lag > 2 else 0.0
    return max(1.0, (2 * total - 1) / (1 - hidden))


def deviations(values: list[float], level: float) -> list[float]:
    """Of the flags "above the quantile" from their mean."""
    ordered = sorted(values)
    threshold = ordered[math.ceil(round(len(values) * level, 9)) - 1]
    flags = [float(value > threshold) for value in values]
    if not any(flags):
        flags = [float(value >= threshold) for value in values]
    mean = fmean(flags)
    return [flag - mean for flag in flags] if 0 < mean < 1 else []


@settings(deadline=None)
@example([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0], 1.0)
@given(st.lists(FLOATS | st.integers(0, 3).map(float), min_size=4, max_size=500), st.floats(0.1, 1))
def test_is_the_definition(values: list[float], level: float) -> None:
    """Counting bits is the same as multiplying, ties and short series included."""
    assert design_effect(values, [level]) == pytest.approx(naive(values, level))


@given(st.lists(FLOATS, max_size=60), st.floats(0.1, 0.9))
def test_looks_at_ranks_alone(values: list[float], level: float) -> None:
    """A monotone change of all values changes nothing: no marginal distribution is assumed."""
    ranks = {value: float(rank) for rank, value in enumerate(sorted(set(values)))}
    assert design_effect([ranks[v] for v in values], [level]) == design_effect(values, [level])


@pytest.mark.parametrize(
    "values", [[], [1.0], [5.0] * 500, [math.inf] * 500], ids=["none", "one", "alike", "failed"]
)
def test_no_variation_is_no_dependence(values: list[float]) -> None:
    """Constant series, failures throughout, and nothing at all."""
    assert design_effect(values, [0.5, 0.9]) == 1


def test_bursts_of_failures_show_where_they_fill_the_tail() -> None:
    """Where the quantile is infinite nothing is above it; being at it is the event."""
    values = ([math.inf] * 20 + [1.0] * 30) * 20
    assert design_effect(values, [0.9]) > 5


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 1.0), (0.5, 2.29), (0.9, 13.2)])
def test_of_a_known_series(rho: float, expected: float) -> None:
    """Of an AR(1) at the median: the autocorrelations are 2/π·asin(ρ^lag)."""
    exact = 1 + 2 * math.fsum(2 / math.pi * math.asin(rho**lag) for lag in range(1, 1000))
    assert exact == pytest.approx(expected, rel=0.01)
    chance, series = random.Random(1), Autoregressive(rho, 0.01)  # noqa: S311 - a simulation
    found = [design_effect(series(chance, 4000), [0.5]) for _ in range(40)]
    assert fmean(found) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("length", [2, 5, 20])
def test_of_bursts(length: int) -> None:
    """The number of violations varies by 2 × length - 1 times what independent ones do."""
    chance, series = random.Random(2), Bursts(length, 0.1)  # noqa: S311 - a simulation
    flags = [value > 0 for value in series(chance, 400_000)]
    blocks = [sum(flags[at : at + 1000]) for at in range(0, len(flags), 1000)]
    mean = fmean(blocks)
    variance = fmean((block - mean) ** 2 for block in blocks)
    # Violations take room, 10 % of it: that makes them vary a little less.
    assert variance / (1000 * 0.1 * 0.9) == pytest.approx(of_bursts(length), rel=0.3)
    assert burst_length(of_bursts(length)) == length


def test_a_change_of_speed_is_no_dependence() -> None:
    """A server that becomes twice as fast in the middle is not one long burst."""
    draw = random.Random(1)  # noqa: S311 - a simulation
    values = [draw.gauss(35, 3) for _ in range(600)] + [draw.gauss(20, 2) for _ in range(600)]
    assert design_effect(values, [0.9]) < 1.5


@pytest.mark.parametrize(
    ("rho", "at_p90", "at_p99"), [(0.5, 1.89, 1.35), (0.7, 3.21, 2.03), (0.9, 10.11, 5.85)]
)
def test_rarer_events_cluster_less(rho: float, at_p90: float, at_p99: float) -> None:
    """The exact design effects of an AR(1), from the bivariate normal distribution: what is
    thinned from p90 to p99 is not less than those of p99, and not much more.
    """
    del rho
    assert at_p99 - 0.3 < thinned(at_p90, 0.01) < 1.15 * at_p99
    assert thinned(at_p90, 0.1) == thinned(at_p90, 0.5) == at_p90
