"""The shift of a quantile between two runs: its interval holds what it says."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llmdeploy.verdict.shift import interval, shift

_RUNS = 200


def _seeded() -> random.Random:
    return random.Random(7)  # noqa: S311 - a simulation


def _series(random_: random.Random, n: int, correlation: float) -> list[float]:
    """Lognormal latencies, each like the one before to that degree."""
    fresh = math.sqrt(1 - correlation**2)
    state, found = random_.gauss(0, 1), []
    for _ in range(n):
        state = correlation * state + fresh * random_.gauss(0, 1)
        found.append(100 * math.exp(0.5 * state))
    return found


@pytest.mark.parametrize(
    ("n", "p", "correlation"), [(300, 0.5, 0.0), (300, 0.9, 0.0), (400, 0.5, 0.6)]
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


def test_the_interval_is_narrow_enough_to_see_a_shift() -> None:
    random_ = _seeded()
    was = _series(random_, 2000, 0.0)
    found = shift(was, [1.5 * value for value in _series(random_, 2000, 0.0)], 0.5, 0.95)
    assert found is not None
    assert 1.35 < found.low < 1.5 < found.high < 1.65


@pytest.mark.parametrize(("n", "p"), [(99, 0.5), (300, 0.99)])
def test_there_is_no_interval_for_too_few_requests(n: int, p: float) -> None:
    assert interval(_series(_seeded(), n, 0.0), p, 0.975) is None


def test_failed_requests_are_slower_than_any_other() -> None:
    was = _series(_seeded(), 300, 0.0)
    found = shift(was, [math.inf] * 300, 0.5, 0.95)
    assert found is not None
    assert found.now == found.high == found.low == math.inf
    back = shift([math.inf] * 300, was, 0.5, 0.95)
    assert back is not None
    assert back.low == 0


def test_dependence_widens_the_interval() -> None:
    values = _series(_seeded(), 1000, 0.0)
    alike = [value for value in values[:200] for _ in range(5)]
    narrow, wide = interval(values, 0.5, 0.95), interval(alike, 0.5, 0.95)
    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
