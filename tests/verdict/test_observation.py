"""One latency, or weighted ones: the same observation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.verdict.observation import mean, over, weighted

GAPS = st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.01, 9)), min_size=1, max_size=9)


@given(GAPS, st.floats(0, 1e3))
def test_the_part_over_the_limit_is_a_share(gaps: list[tuple[float, float]], limit: float) -> None:
    """By weight, whatever the weights add up to."""
    parts = weighted(gaps)
    total = sum(weight for _, weight in gaps)
    exact = sum(weight for value, weight in gaps if value > limit) / total
    assert over(parts, limit) == pytest.approx(exact)
    assert 0 <= over(parts, limit) <= 1
    assert mean(parts) == pytest.approx(sum(v * w for v, w in gaps) / total)


@given(st.floats(0, 1e3) | st.just(math.inf), st.floats(0, 1e3))
def test_a_scalar_is_one_weight(value: float, limit: float) -> None:
    """Whatever the weight is."""
    assert weighted(value) == weighted([(value, 7)]) == [(value, 1)]
    assert over(weighted(value), limit) == (value > limit)
    assert mean(weighted(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, [(math.nan, 3)]], ids=str)
def test_what_is_no_number_is_infinitely_slow(value: float | list[tuple[float, float]]) -> None:
    """NaN compares false with everything; it must not hide."""
    assert over(weighted(value), 1e300) == 1
    assert mean(weighted(value)) == math.inf


@pytest.mark.parametrize("gaps", [[], [(3.0, 0.0)], [(3.0, -1.0), (4.0, 2.0)]], ids=str)
def test_without_weight_there_is_no_observation(gaps: list[tuple[float, float]]) -> None:
    """A request of one token has no gap, and is left out by who knows that."""
    with pytest.raises(ValueError, match="weights of 0 or more"):
        weighted(gaps)
