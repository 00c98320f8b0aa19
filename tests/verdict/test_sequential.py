"""The anytime-valid test has the published boundaries and keeps its promises."""

import math
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.verdict.sequential import SequentialTest, first

P99 = SequentialTest(0.01, 0.05, 0.05)
SPRT = SequentialTest(0.01, 0.05, 0.05, indifference=(0.005, 0.01))
# By violations: the requests at which a p99 passes, and up to which it fails.
PASSES_AT = {0: 381, 1: 691, 2: 902, 3: 1094, 4: 1273, 5: 1442}
FAILS_UP_TO = {2: 9, 3: 28, 4: 55, 5: 90, 6: 131, 7: 176}
tests = st.builds(
    SequentialTest,
    st.sampled_from([0.5, 0.1, 0.01, 0.001]),
    st.sampled_from([0.05, 0.01]),
    st.sampled_from([0.05, 0.01]),
    st.sampled_from([None, (0.005, 0.01), (0.1, 0.3)]),
)
requests = st.integers(1, 5000)


@pytest.mark.parametrize(("violations", "requests"), PASSES_AT.items())
def test_passes_from_the_published_boundary(violations: int, requests: int) -> None:
    """With one request fewer there is no pass."""
    assert P99.decide(requests, violations) is True
    assert P99.decide(requests - 1, violations) is None


@pytest.mark.parametrize(("violations", "requests"), FAILS_UP_TO.items())
def test_fails_up_to_the_published_boundary(violations: int, requests: int) -> None:
    """With one request more there is no failure."""
    assert P99.decide(requests, violations) is False
    assert P99.decide(requests + 1, violations) is None


def test_one_violation_never_fails_a_p99() -> None:
    """One slow request is no evidence against one in a hundred."""
    assert P99.decide(1, 1) is None


@given(tests, requests, st.floats(0, 1), st.floats(0, 1))
def test_a_violation_is_never_evidence_for(
    test: SequentialTest, n: int, share: float, more: float
) -> None:
    """More violations among as many requests: less for, more against. Bounds rest on it."""
    few, many = n * share, n * (share + (1 - share) * more)
    assert test.log_evidence_for(n, many) <= test.log_evidence_for(n, few) + 1e-9
    assert test.log_evidence_against(n, many) >= test.log_evidence_against(n, few) - 1e-9


@given(tests, requests, st.floats(0, 1), st.floats(1, 50), st.floats(1, 50))
def test_what_decides_with_a_design_effect_decides_with_a_smaller_one(
    test: SequentialTest, n: int, share: float, one: float, other: float
) -> None:
    """Dependence only takes evidence away: it need not be known where there is none."""
    small, large = sorted((one, other))
    answer = test.decide(n / large, n * share / large)
    if answer is not None:
        assert test.decide(n / small, n * share / small) is answer


@given(tests, st.floats(0, 1))
def test_a_part_of_a_violation_is_worth_no_more_than_a_chance_of_a_whole_one(
    test: SequentialTest, part: float
) -> None:
    """The factor of a request is convex in its violation, so that Ville's inequality holds."""
    for evidence in (test.log_evidence_for, test.log_evidence_against):
        chance = (1 - part) * math.exp(evidence(1, 0)) + part * math.exp(evidence(1, 1))
        assert math.exp(evidence(1, part)) <= chance + 1e-9


@given(tests, st.floats(0, 1))
def test_evidence_does_not_grow_by_itself(test: SequentialTest, nearer: float) -> None:
    """At what it speaks against, a request multiplies evidence by 1 on average, at the most."""
    good, bad = test.indifference or (test.allowed, test.allowed)
    over, under = bad + (1 - bad) * nearer, good * nearer
    grown = [
        (1 - share) * math.exp(evidence(1, 0)) + share * math.exp(evidence(1, 1))
        for share, evidence in (
            (over, test.log_evidence_for),
            (under, test.log_evidence_against),
        )
    ]
    assert max(grown) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("test", "passing", "failing"),
    [(P99, (0.04, 0.05), (0.02, 0.05)), (SPRT, (0.04, 0.05), (0.5, 1.0))],
    ids=["mixture", "SPRT"],
)
def test_wrong_answers_at_exactly_the_allowed_fraction(
    test: SequentialTest, passing: tuple[float, float], failing: tuple[float, float]
) -> None:
    """Calculated exactly, looking after every one of 3,000 independent requests with 1 % over: a
    mixture passes and fails 5 % at the most. For the SPRT this is its bad fraction: it fails.
    """
    passed, failed = _exactly(test, 0.01, 3000)
    assert passing[0] - 0.01 <= passed <= passing[1]
    assert failing[0] - 0.01 <= failed <= failing[1]


def test_the_sprt_rarely_fails_its_good_fraction() -> None:
    """Calculated exactly: at 0.5 % over it fails 5 % at the most, and mostly passes."""
    passed, failed = _exactly(SPRT, 0.005, 3000)
    assert failed <= 0.05
    assert passed > 0.7


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-5, 60))
def test_first_finds_the_first(low: int, more: int, at: int) -> None:
    """By bisection, the same as by trying."""
    high = low + more
    found = first(low, high, lambda n: n >= at)
    assert found == next((n for n in range(low, high) if n >= at), high)


def _exactly(test: SequentialTest, over: float, cap: int) -> tuple[float, float]:
    """The probabilities of passing and of failing, from the distribution of violations among
    the runs that are not decided.
    """
    passed = failed = 0.0
    most, fewest, alive = -1, 1, {0: 1.0}
    for n in range(1, cap + 1):
        spread: defaultdict[int, float] = defaultdict(float)
        for k, share in alive.items():
            spread[k] += (1 - over) * share
            spread[k + 1] += over * share
        while test.passes(n, most + 1):
            most += 1
        while not test.fails(n, fewest):
            fewest += 1
        passed += math.fsum(share for k, share in spread.items() if k <= most)
        failed += math.fsum(share for k, share in spread.items() if k >= fewest)
        alive = {k: share for k, share in spread.items() if most < k < fewest}
    return passed, failed
