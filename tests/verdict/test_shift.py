"""The shift of a quantile between two runs: its interval holds what it says."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from pytest_llmdeploy.verdict import Rule
from pytest_llmdeploy.verdict.dependence import design_effect
from pytest_llmdeploy.verdict.shift import bounds, shift

_RUNS = 200


def _seeded() -> random.Random:
    return random.Random(7)  # noqa: S311 - a simulation


def _latencies(random_: random.Random, correlation: float) -> Iterator[float]:
    """Lognormal ones, each like the one before to that degree."""
    fresh = math.sqrt(1 - correlation**2)
    state = random_.gauss(0, 1)
    while True:
        state = correlation * state + fresh * random_.gauss(0, 1)
        yield 100 * math.exp(0.5 * state)


def _series(random_: random.Random, n: int, correlation: float = 0.0) -> list[float]:
    source = _latencies(random_, correlation)
    return [next(source) for _ in range(n)]


@pytest.mark.parametrize(
    ("n", "p", "correlation"),
    [(300, 0.5, 0.0), (300, 0.9, 0.0), (1500, 0.99, 0.0), (400, 0.5, 0.6), (1500, 0.99, 0.6)],
)
def test_the_interval_holds_the_true_shift_as_often_as_it_says(
    n: int, p: float, correlation: float
) -> None:
    random_ = _seeded()
    held = 0
    for _ in range(_RUNS):
        was = _series(random_, n, correlation)
        now = [1.2 * value for value in _series(random_, n, correlation)]
        found = shift(was, now, p, 0.95)
        assert found is not None
        held += found.low <= 1.2 <= found.high
    # Four standard errors below 95 %.
    assert held / _RUNS >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / _RUNS)


def test_a_run_that_ends_when_it_looks_good_does_not_narrow_it() -> None:
    """A baseline is kept from the moment at which its p90 seemed lowest, over a thousand requests:
    one look in every fifty.
    """
    random_, rule, wrong = _seeded(), Rule(0.9, alpha=0.05, beta=0.05), 0
    true = 100 * math.exp(0.5 * 1.2815515655446004)
    for _ in range(_RUNS):
        values = _series(random_, 1000)
        highs = [bounds(values[:n], rule)[1] for n in range(100, 1001, 50)]
        wrong += min(highs) < true
    assert wrong / _RUNS <= 0.05


def test_the_interval_is_narrow_enough_to_see_a_shift() -> None:
    random_ = _seeded()
    was = _series(random_, 2000)
    found = shift(was, [1.5 * value for value in _series(random_, 2000)], 0.5, 0.95)
    assert found is not None
    assert 1.25 < found.low < 1.5 < found.high < 1.75


@pytest.mark.parametrize(("n", "p"), [(99, 0.5), (300, 0.99)])
def test_there_is_no_interval_for_too_few_requests(n: int, p: float) -> None:
    enough = _series(_seeded(), 2000)
    assert shift(_series(_seeded(), n), enough, p, 0.95) is None
    assert shift(enough, _series(_seeded(), n), p, 0.95) is None


def test_bounds_are_those_of_the_test() -> None:
    """A limit at the upper bound passes, the next one below does not; below the lower bound every
    limit fails, at it none does.
    """
    values, rule = _series(_seeded(), 500), Rule(0.9)
    low, high = bounds(values, rule)

    def decided(limit: float) -> bool | None:
        over = sum(value > limit for value in values)
        return rule.decide(len(values), over, design_effect(values, rule.levels))

    ordered = sorted(values)
    assert decided(high) is True
    assert decided(ordered[ordered.index(high) - 1]) is None
    assert decided(math.nextafter(low, 0)) is False
    assert decided(low) is None
    assert bounds(values[:99], rule) == (0, math.inf)


def test_failed_requests_are_slower_than_any_other() -> None:
    was = _series(_seeded(), 300)
    found = shift(was, [math.inf] * 300, 0.5, 0.95)
    assert found is not None
    assert found.now == found.high == found.low == math.inf
    back = shift([math.inf] * 300, was, 0.5, 0.95)
    assert back is not None
    assert back.low == 0


def test_dependence_widens_the_interval() -> None:
    values = _series(_seeded(), 1000)
    alike = [value for value in values[:200] for _ in range(5)]
    narrow, wide = bounds(values, Rule(0.5)), bounds(alike, Rule(0.5))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
