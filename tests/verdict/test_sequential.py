"""The anytime-valid test has the published boundaries and keeps its promises."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.verdict.sequential import SequentialTest

P99 = SequentialTest.of_percentile(0.99, 0.05, 0.05)
# By violations: the requests at which a p99 passes, and up to which it fails.
PASSES_AT = {0: 381, 1: 691, 2: 902, 3: 1094, 4: 1273, 5: 1442}
FAILS_UP_TO = {2: 9, 3: 28, 4: 55, 5: 90, 6: 131, 7: 176}


@pytest.mark.parametrize(("violations", "requests"), PASSES_AT.items())
def test_passes_from_the_published_boundary(violations: int, requests: int) -> None:
    """With one request fewer there is no pass."""
    assert P99.decide(requests, violations) is True
    assert P99.decide(requests - 1, violations) is None
    assert P99.requests_to_pass(violations) == requests


@pytest.mark.parametrize(("violations", "requests"), FAILS_UP_TO.items())
def test_fails_up_to_the_published_boundary(violations: int, requests: int) -> None:
    """With one request more there is no failure."""
    assert P99.decide(requests, violations) is False
    assert P99.decide(requests + 1, violations) is None


def test_one_violation_never_fails_a_p99() -> None:
    """One slow request is no evidence against one in a hundred."""
    assert P99.decide(1, 1) is None


@pytest.mark.parametrize(
    ("p", "requests"), [(0.5, range(4, 12)), (0.95, range(70, 80)), (0.999, range(3780, 3830))]
)
def test_other_percentiles_scale(p: float, requests: range) -> None:
    """A p95 needs a fifth of the requests of a p99, a p99.9 ten times as many."""
    test = SequentialTest.of_percentile(p, 0.05, 0.05)
    assert test.requests_to_pass() in requests
    assert test.decide(40, 40) is False


@pytest.mark.parametrize(
    ("p", "true_rate", "right"),
    [(0.5, 0.2, True), (0.5, 0.8, False), (0.999, 0.0, True), (0.999, 0.01, False)],
)
def test_clear_cases_are_decided_rightly(p: float, true_rate: float, right: bool) -> None:
    """The median and the p99.9 decide too, not only the p99."""
    test = SequentialTest.of_percentile(p, 0.05, 0.05)
    assert [_run(test, true_rate, 8000, seed) for seed in range(5)] == [right] * 5


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_the_boundaries_in_violations_are_those_of_decide(requests: int, p: float) -> None:
    """What most_violations_to_pass and fewest_violations_to_fail name is tight."""
    test = SequentialTest.of_percentile(p, 0.05, 0.05)
    most, fewest = test.most_violations_to_pass(requests), test.fewest_violations_to_fail(requests)
    assert test.decide(requests, 0 if most is None else most + 1) is not True
    assert most is None or test.decide(requests, most) is True
    assert test.decide(requests, requests if fewest is None else fewest - 1) is not False
    assert fewest is None or test.decide(requests, fewest) is False


def test_false_passes_and_failures_are_rare_at_exactly_the_allowed_fraction() -> None:
    """At 1 % violations, looking after every request, each wrong answer is 5 % at the most."""
    answers = [_run(P99, 0.01, 3000, seed) for seed in range(400)]
    # The true rates are 4 % and 2 %; the seeds are fixed, so that this either holds or not.
    assert answers.count(True) <= 20
    assert answers.count(False) <= 20


def test_a_stricter_alpha_asks_for_more() -> None:
    """A higher confidence needs more requests to pass, and more violations to fail."""
    strict = SequentialTest.of_percentile(0.99, 0.01, 0.01)
    assert strict.requests_to_pass() > P99.requests_to_pass()
    assert strict.decide(9, 2) is None


def _run(test: SequentialTest, true_rate: float, most: int, seed: int) -> bool | None:
    """The first answer, looking after every request. Only a good request can bring a pass and
    only a violation a failure, so that the next boundary can be looked up instead.
    """
    chance, violations = random.Random(seed), 0  # noqa: S311 - a simulation
    for n in range(1, most + 1):
        if chance.random() < true_rate:
            violations += 1
            if test.decide(n, violations) is False:
                return False
        elif n >= _passes_at(test, violations):
            return True
    return None


@cache
def _passes_at(test: SequentialTest, violations: int) -> int:
    return test.requests_to_pass(violations)
