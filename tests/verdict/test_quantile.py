"""A percentile passes, fails, or says what it takes; its bound is what the values support."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.verdict import Quantile

FAST, SLOW = 10.0, 1000.0
LATENCIES = st.builds(
    lambda chance, n, spread: [chance.lognormvariate(4, spread) for _ in range(n)],
    st.integers(0, 10**6).map(random.Random),
    st.integers(1, 900),
    st.sampled_from([0.1, 1.0, 2.0]),
)


@pytest.mark.parametrize(
    ("values", "p", "point"),
    [
        (range(1, 101), 0.99, 99),
        (range(1, 101), 0.5, 50),
        (range(1, 102), 0.99, 100),
        (range(1, 1001), 0.999, 999),
        ([3, 1, 2], 0.5, 2),
        ([7], 0.99, 7),
        ([1, 2, math.inf], 0.99, math.inf),
    ],
    ids=str,
)
def test_the_point_is_the_nearest_rank(values: range | list[float], p: float, point: float) -> None:
    """⌈n·p⌉-th smallest, without interpolation, and exact where n·p is whole."""
    assert Quantile([float(value) for value in values], p).point == point


class TestAnswers:
    """PASS, FAIL, INCONCLUSIVE and ERROR."""

    def test_pass_shows_the_bound(self) -> None:
        """381 fast requests pass a p99, and the bound is below the limit."""
        judgement = Quantile([FAST] * 380 + [20.0], 0.99).at_most(100, "steady")
        assert (judgement.status, judgement.requirement) == (Status.PASS, "≤ 100 ms steady")
        assert (judgement.bound, judgement.result) == (20.0, "≤ 20 ms")
        assert judgement.margin == pytest.approx(0.8)

    def test_one_request_short_is_inconclusive(self) -> None:
        """Without enough requests nothing passes, and the hint says how many are missing."""
        judgement = Quantile([FAST] * 380, 0.99).at_most(100)
        assert judgement.status is Status.INCONCLUSIVE
        assert judgement.result == "about 10 ms, 0 of 380 over"
        assert judgement.hint == (
            "380 requests with 0 over the limit decide nothing; it takes 1 more without another "
            "one to pass: raise max_duration or the rate"
        )

    def test_failed_requests_are_over_every_limit(self) -> None:
        """A server that refuses quickly is not fast; there is no bound to show."""
        judgement = Quantile([math.inf] * 9, 0.99).at_most(1e12)
        assert (judgement.status, judgement.bound) == (Status.FAIL, None)
        assert judgement.result == "2 of 2 over: they failed"
        assert judgement.evidence["failed"] == 2

    def test_fail_shows_what_was_exceeded(self) -> None:
        """The bound of a failure is over the limit."""
        judgement = Quantile([SLOW, 2 * SLOW], 0.99).at_most(100)
        assert (judgement.status, judgement.result) == (Status.FAIL, "≥ 1,000 ms")

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ([FAST] * 381 + [SLOW] * 300, Status.PASS),
            ([SLOW] * 2 + [FAST] * 3000, Status.FAIL),
        ],
        ids=["pass", "fail"],
    )
    def test_the_first_crossing_in_order_of_arrival_stands(
        self, values: list[float], status: Status
    ) -> None:
        """What comes after a decision does not change it, or waiting would pick the verdict."""
        assert Quantile(values, 0.99).at_most(100).status is status

    def test_no_request_is_an_error(self) -> None:
        """A workload that measured nothing does not pass."""
        judgement = Quantile([], 0.99).at_most(100)
        assert (judgement.status, judgement.result) == (Status.ERROR, "no request was measured")

    @pytest.mark.parametrize("values", [[FAST] * 500, [FAST] * 5, []], ids=["500", "5", "0"])
    def test_a_problem_can_not_pass(self, values: list[float]) -> None:
        """What was measured wrongly is an ERROR that says why."""
        judgement = Quantile(values, 0.99, problem="the client was late").at_most(100)
        assert (judgement.status, judgement.result) == (Status.ERROR, "the client was late")

    def test_a_problem_does_not_excuse_a_failure(self) -> None:
        """A decided FAIL stands whatever else was wrong."""
        assert Quantile([SLOW] * 5, 0.99, problem="late").at_most(100).status is Status.FAIL

    @pytest.mark.parametrize(("p", "n"), [(0.5, 20), (0.999, 4000)])
    def test_other_percentiles_pass(self, p: float, n: int) -> None:
        """A median needs a handful of requests, a p99.9 thousands."""
        assert Quantile([FAST] * n, p).at_most(100).status is Status.PASS


class TestBound:
    """Judging again at the bound says the same; just beside it, no longer."""

    @settings(max_examples=40, deadline=None)
    @given(LATENCIES, st.sampled_from([0.5, 0.95, 0.99]), st.floats(10, 2000))
    def test_is_tight(self, values: list[float], p: float, limit: float) -> None:
        """The bound of a PASS is the smallest limit that these values pass, that of a FAIL the
        one below which they fail.
        """
        quantile = Quantile(values, p)
        judgement = quantile.at_most(limit)
        bound, tested = judgement.bound, values[: judgement.evidence["n"]]
        if bound is None:
            assert quantile.test.most_violations_to_pass(len(tested)) is None
            return
        at, below = (
            quantile.test.decide(len(tested), sum(value > cut for value in tested))
            for cut in (bound, math.nextafter(bound, 0))
        )
        if judgement.status is Status.FAIL:
            assert (at is not False, below) == (True, False)
            assert bound > limit
        else:
            assert (at, below is not True) == (True, True)
            assert (bound <= limit) == (judgement.status is Status.PASS)
