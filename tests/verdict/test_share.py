"""A share passes, fails, or says what it takes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.verdict import Rule, Share

P99 = Rule(0.99)


def test_pass_shows_the_share_that_the_requests_support() -> None:
    """More than is asked for, where all were good."""
    judgement = Share([True] * 2000, Rule(0.9)).at_least("of requests meet every limit")
    assert judgement.status is Status.PASS
    assert judgement.requirement == "≥ 90 % of requests meet every limit"
    assert judgement.result == "≥ 96.25 % (0 of 100 missed; bursts ≤ 1.8)"
    assert (judgement.measured, judgement.limit, judgement.unit) == (1.0, 0.9, "fraction")
    assert judgement.evidence["n"] == 100


def test_fail_shows_what_was_reached_at_most() -> None:
    """The bound is below what is asked for."""
    judgement = Share([True, False, True] * 100, P99).at_least()
    assert judgement.status is Status.FAIL
    assert judgement.result.startswith("≤ 80.12 % (33 of 100 missed)")
    assert judgement.bound is not None
    assert judgement.bound < 0.99


def test_inconclusive_says_what_it_takes() -> None:
    """How many more, all good."""
    judgement = Share([True] * 299 + [False], P99).at_least()
    assert judgement.status is Status.INCONCLUSIVE
    assert judgement.result == "about 99.67 %, 1 of 300 missed"
    assert judgement.hint == (
        "300 requests with 1 missed decide nothing; it takes 391 more without another one to "
        "pass: raise max_duration or the rate"
    )


def test_an_indifference_zone_has_no_bound() -> None:
    """It chooses between two fractions."""
    judgement = Share([True] * 800, Rule(0.99, indifference=(0.005, 0.01))).at_least()
    assert (judgement.status, judgement.bound) == (Status.PASS, None)
    assert judgement.result.startswith("≥ 99 %")


@pytest.mark.parametrize(
    ("good", "fields", "status", "result"),
    [
        ([], {}, Status.ERROR, "no request was measured"),
        ([True] * 500, {"problem": "late"}, Status.ERROR, "late"),
        ([False] * 500, {"problem": "late"}, Status.FAIL, None),
        ([False] * 500, {"invalid": "restarted"}, Status.INVALID, "restarted"),
    ],
    ids=["empty", "problem", "failed", "invalid"],
)
def test_what_was_measured_wrongly_can_not_pass(
    good: list[bool], fields: dict[str, Any], status: Status, result: str | None
) -> None:
    """As with percentiles."""
    judgement = Share(good, P99, **fields).at_least()
    assert judgement.status is status
    assert result in {None, judgement.result}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 900), st.integers(0, 40), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_bound_is_tight(n: int, every: int, p: float) -> None:
    """Judging as many at the bound says the same; just beside it, no longer."""
    good = [not every or at % (every + 1) > 0 for at in range(n)]
    judgement = Share(good, Rule(p)).at_least()
    bound, found = judgement.bound, judgement.evidence
    assert bound is not None
    effective = (found["n"] / found["design_effect"], found["violations"] / found["design_effect"])
    if judgement.status is Status.FAIL:
        assert bound <= p
        assert Rule(bound + 1e-6).test.fails(*effective)
        assert not Rule(bound - 1e-6).test.fails(*effective)
    elif bound:
        assert (bound >= p) == (judgement.status is Status.PASS)
        assert Rule(bound - 1e-6).test.passes(*effective)
        assert not Rule(bound + 1e-6).test.passes(*effective)
