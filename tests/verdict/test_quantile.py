"""A percentile passes, fails, or says what it takes; its bound is what the values support."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.verdict import Observation, Quantile, Rule
from pytest_llmdeploy.verdict.observation import over, weighted

FAST, SLOW = 10.0, 1000.0
P99 = Rule(0.99)
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
    assert Quantile([float(value) for value in values], Rule(p)).point == point


def test_the_point_of_weighted_values_is_by_weight() -> None:
    """Half of the first request and all of the second are within 2."""
    values = [[(1.0, 5.0), (9.0, 5.0)], [(2.0, 1.0)]]
    assert Quantile(values, Rule(0.75)).point == 2
    assert Quantile(values, Rule(0.76)).point == 9


class TestAnswers:
    """PASS, FAIL, INCONCLUSIVE, INVALID and ERROR."""

    def test_pass_shows_the_bound(self) -> None:
        """381 fast requests pass a p99, and the bound is below the limit."""
        judgement = Quantile([FAST] * 380 + [20.0], P99).at_most(100, "steady")
        assert (judgement.status, judgement.requirement) == (Status.PASS, "≤ 100 ms steady")
        assert (judgement.bound, judgement.result) == (20.0, "≤ 20 ms (0 of 381 over; bursts ≤ 1)")
        assert judgement.margin == pytest.approx(0.8)

    def test_the_row_says_what_was_saved(self) -> None:
        """And against which bursts it holds."""
        late = Quantile([FAST] * 2000, Rule(0.99, alpha=0.01), saved="40 s saved").at_most(100)
        assert late.result == "≤ 10 ms (0 of 569 over; bursts ≤ 1; 40 s saved)"
        assert late.evidence["saved"] == "40 s saved"

    def test_evidence_is_complete(self) -> None:
        """What a reader needs to judge again."""
        evidence = Quantile([FAST] * 3000, Rule(0.99, burst=2)).at_most(100).evidence
        assert evidence == {
            "source": "client",
            "n": 1170,
            "violations": 0,
            "failed": 0,
            "p": 0.99,
            "alpha": 0.05,
            "beta": 0.05,
            "burst": 2,
            "indifference": None,
            "design_effect": 3,
            "effective_requests": pytest.approx(390),
            "holds_for_bursts_of": pytest.approx(2.037, abs=0.001),
            "test": "mixture e-process",
            "saved": "",
        }

    def test_one_request_short_is_inconclusive(self) -> None:
        """Without enough requests nothing passes, and the hint says how many are missing."""
        judgement = Quantile([FAST] * 380, P99).at_most(100)
        assert judgement.status is Status.INCONCLUSIVE
        assert judgement.result == "about 10 ms, 0 of 380 over"
        assert judgement.hint == (
            "380 requests with 0 over the limit decide nothing; it takes 1 more without another "
            "one to pass: raise max_duration or the rate"
        )

    def test_dependent_requests_are_worth_less(self) -> None:
        """Latencies that stay high or low for a while; the hint says what they amount to."""
        values = ([FAST] * 15 + [2 * FAST] * 5) * 30
        judgement = Quantile(values, P99).at_most(100)
        assert judgement.status is Status.INCONCLUSIVE
        effective = judgement.evidence["effective_requests"]
        assert effective < 250
        assert f"600 requests, worth {effective:,.0f} independent ones, with 0" in judgement.hint
        more = int(judgement.hint.split("it takes ")[1].split(" more")[0].replace(",", ""))
        assert Quantile(values * 9, P99).at_most(100).evidence["n"] <= 1.2 * (600 + more)

    def test_an_indifference_zone_is_decided_by_the_sprt(self) -> None:
        """Between two fractions, always."""
        rule = Rule(0.99, indifference=(0.005, 0.01))
        nearly_bad = ([FAST] * 110 + [SLOW]) * 30
        judgement = Quantile(nearly_bad, rule).at_most(100)
        assert (judgement.status, judgement.evidence["test"]) == (Status.FAIL, "SPRT")
        assert Quantile(nearly_bad, P99).at_most(100).status is Status.INCONCLUSIVE

    def test_failed_requests_are_over_every_limit(self) -> None:
        """A server that refuses quickly is not fast; there is no bound to show."""
        judgement = Quantile([math.inf] * 900, P99).at_most(1e12)
        assert (judgement.status, judgement.bound) == (Status.FAIL, None)
        assert judgement.result == "100 of 100 over: they failed"
        assert judgement.evidence["failed"] == 100

    def test_fail_shows_what_was_exceeded(self) -> None:
        """The bound of a failure is over the limit."""
        judgement = Quantile([SLOW, 2 * SLOW] * 50, P99).at_most(100)
        assert judgement.status is Status.FAIL
        assert judgement.result == "≥ 2,000 ms (100 of 100 over)"

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ([FAST] * 400 + [SLOW] * 300, Status.PASS),
            ([SLOW] * 300 + [FAST] * 9000, Status.FAIL),
        ],
        ids=["pass", "fail"],
    )
    def test_the_first_crossing_in_order_of_arrival_stands(
        self, values: list[float], status: Status
    ) -> None:
        """What comes after a decision does not change it, or waiting would pick the verdict."""
        assert Quantile(values, P99).at_most(100).status is status

    def test_no_request_is_an_error(self) -> None:
        """A workload that measured nothing does not pass."""
        judgement = Quantile([], P99).at_most(100)
        assert (judgement.status, judgement.result) == (Status.ERROR, "no request was measured")

    @pytest.mark.parametrize("values", [[FAST] * 500, [FAST] * 5, []], ids=["500", "5", "0"])
    def test_a_problem_can_not_pass(self, values: list[float]) -> None:
        """What was measured wrongly is an ERROR that says why."""
        judgement = Quantile(values, P99, problem="the client was late").at_most(100)
        assert (judgement.status, judgement.result) == (Status.ERROR, "the client was late")

    def test_a_problem_does_not_excuse_a_failure(self) -> None:
        """A decided FAIL stands whatever else was wrong."""
        assert Quantile([SLOW] * 500, P99, problem="late").at_most(100).status is Status.FAIL

    @pytest.mark.parametrize("values", [[FAST] * 500, [SLOW] * 500, []], ids=str)
    def test_what_is_invalid_decides_nothing(self, values: list[float]) -> None:
        """Neither a PASS nor a FAIL: the measurement itself is at fault."""
        judgement = Quantile(values, P99, problem="late", invalid="clock stepped").at_most(100)
        assert (judgement.status, judgement.result) == (Status.INVALID, "clock stepped")
        assert (judgement.bound, judgement.measured) == (None, None)

    @pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.999, 4000)])
    def test_other_percentiles_pass(self, p: float, n: int) -> None:
        """A median needs a hundred requests, a p99.9 thousands."""
        assert Quantile([FAST] * n, Rule(p)).at_most(100).status is Status.PASS


WEIGHTED = st.builds(
    lambda chance, n: [
        [(chance.lognormvariate(4, 1), chance.randint(1, 4)) for _ in range(chance.randint(1, 5))]
        for _ in range(n)
    ],
    st.integers(0, 10**6).map(random.Random),
    st.integers(1, 500),
)


class TestBound:
    """Judging again at the bound says the same; just beside it, no longer."""

    @settings(max_examples=60, deadline=None)
    @given(LATENCIES | WEIGHTED, st.sampled_from([0.5, 0.95, 0.99]), st.floats(10, 2000))
    def test_is_tight(self, values: list[Observation], p: float, limit: float) -> None:
        """The bound of a PASS is the smallest limit that these values pass, that of a FAIL the
        one below which they fail.
        """
        rule = Rule(p)
        quantile = Quantile(values, rule)
        judgement = quantile.at_most(limit)
        bound, n = judgement.bound, judgement.evidence["n"]
        estimated = quantile.decide(limit).estimated_effect
        parts = [weighted(value) for value in values[:n]]

        def answer(cut: float) -> bool | None:
            return rule.decide(n, math.fsum(over(part, cut) for part in parts), estimated)

        if bound is None:
            assert answer(max(value for part in parts for value, _ in part)) is not True
            return
        at, below = answer(bound), answer(math.nextafter(bound, 0))
        if judgement.status is Status.FAIL:
            assert (at is not False, below) == (True, False)
            assert bound > limit
        else:
            assert (at, below is not True) == (True, True)
            assert (bound <= limit) == (judgement.status is Status.PASS)
