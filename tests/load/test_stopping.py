"""When a run is over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.load.claims import Budget
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.load.stopping import StoppingRule
from tests.load.workloads import workload

# No percentile is decided on fewer.
ENOUGH = 100


def sample(ttft_ms: float = 10.0, outcome: Outcome = Outcome.OK, due: float = 0.0) -> Sample:
    first = due + ttft_ms / 1000
    stamps = [(first, 1), (first + 0.01, 1)]
    return Sample(due=due, sent=due, ended=due + 1, outcome=outcome, stamps=stamps)


def rule(concurrency: int | None = None, **require: object) -> StoppingRule:
    overrides = {"concurrency": concurrency} if concurrency else {}
    return StoppingRule(workload(require=require, **overrides), Budget(0.05, 0.05), start=0.0)


MEDIAN = {"p50": "100ms"}


def test_it_waits_for_the_slow_one_that_came_first() -> None:
    """However many fast ones finish, none counts before the one that arrived first."""
    following = rule(ttft=MEDIAN)
    for index in range(1, 2 * ENOUGH):
        following.finished(index, sample())
    assert dict(following.answers()) == {"ttft p50": None}
    following.finished(0, sample(5000))
    assert dict(following.answers()) == {"ttft p50": True}


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=130).flatmap(
    lambda slow: st.tuples(st.just(slow), st.permutations(range(len(slow))))
))  # fmt: skip
def test_the_order_of_ends_does_not_matter(case: tuple[list[bool], list[int]]) -> None:
    """Any order in which the same requests finish leads to the same answer."""
    slow, order = case
    samples = [sample(500 if is_slow else 10) for is_slow in slow]
    in_order, shuffled = rule(ttft=MEDIAN), rule(ttft=MEDIAN)
    for index, one in enumerate(samples):
        in_order.finished(index, one)
    for index in order:
        shuffled.finished(index, samples[index])
    assert list(in_order.answers()) == list(shuffled.answers())


def test_it_decides_when_the_evidence_is_enough_and_not_before() -> None:
    """As many good requests as the test needs, and an answer stays once it is there."""
    following = rule(ttft=MEDIAN)
    for index in range(ENOUGH):
        assert not following.is_decided(0.0)
        following.finished(index, sample())
    assert following.is_decided(0.0)
    for index in range(ENOUGH, 4 * ENOUGH):
        following.finished(index, sample(500))
    assert dict(following.answers()) == {"ttft p50": True}


def test_failed_requests_are_over_every_limit() -> None:
    """A server that only fails does not meet a latency."""
    following = rule(ttft=MEDIAN, tpot=MEDIAN)
    for index in range(2 * ENOUGH):
        following.finished(index, sample(outcome=Outcome.HTTP_ERROR))
    assert set(dict(following.answers()).values()) == {False}


def test_all_requirements_are_waited_for() -> None:
    """Latencies, the peak, the backlog and the census each have to be there."""
    following = rule(keeps_up=True, errors="0%", concurrent_sequences=4)
    assert dict(following.answers()) == {"keeps up": None, "concurrency": None, "census": None}
    following.keeps_up = False
    following.running_peak = 4
    assert not following.is_decided(0.0)
    for index in range(ENOUGH):
        assert not following.is_decided(0.0)
        following.finished(index, sample())
    assert following.is_decided(0.0)


@pytest.mark.parametrize("require", [{}, {"errors": "1%"}, {"preemptions": 0}])
def test_a_census_uses_every_place_twice(require: dict[str, object]) -> None:
    """What counts requests waits for two rounds of a closed loop."""
    following = rule(concurrency=4, **require)
    for index in range(8):
        assert not following.is_decided(0.0)
        following.finished(index, sample())
    assert following.is_decided(0.0)


def test_nothing_is_decided_on_the_least_duration_alone() -> None:
    """Requests that were due in it count, but only together with one that was due later."""
    sent = workload(require={"ttft": MEDIAN}, min_duration="10s")
    following = StoppingRule(sent, Budget(0.05, 0.05), start=0.0)
    for index in range(3 * ENOUGH):
        following.finished(index, sample(due=9.9))
    assert dict(following.answers()) == {"ttft p50": None}
    for index in range(3 * ENOUGH, 5 * ENOUGH):
        following.finished(index, sample(due=10.1))
    assert dict(following.answers()) == {"ttft p50": True}
    assert not following.is_decided(9.9)
    assert following.is_decided(10.1)


def test_what_was_due_in_the_warm_up_does_not_count() -> None:
    """However slow it was."""
    following = StoppingRule(workload(require={"ttft": MEDIAN}), Budget(0.05, 0.05), start=5.0)
    for index in range(2 * ENOUGH):
        following.finished(index, sample(5000))
    for index in range(2 * ENOUGH, 3 * ENOUGH):
        following.finished(index, sample(due=5.0))
    assert dict(following.answers()) == {"ttft p50": True}


def test_goodput_is_waited_for() -> None:
    """It is decided on the requests that are within all limits."""
    wanted = {"share": "50%", "ttft": "100ms", "tpot": "5ms"}
    following = rule(goodput=wanted)
    for index in range(2 * ENOUGH):
        following.finished(index, sample())
    assert dict(following.answers()) == {"goodput": False}
