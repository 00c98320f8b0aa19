"""A decision looks now and then, and its first answer stands."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.verdict.series import Autoregressive
from pytest_llmdeploy.verdict import Decision, Observation, Rule

FAST, SLOW = 10.0, 1000.0
P99 = Rule(0.99)
P50 = Rule(0.5)
seeds = st.integers(0, 10**6)


def decided(values: list[float], rule: Rule, limit: float = 100.0) -> Decision:
    """The decision after all of them, and a last look."""
    decision = Decision(rule, limit)
    for value in values:
        decision.push(value)
    decision.look()
    return decision


def series(seed: int, n: int, rho: float = 0.5, over: float = 0.05) -> list[float]:
    """Latencies that depend on each other; the limit is 0."""
    return list(Autoregressive(rho, over)(random.Random(seed), n))  # noqa: S311 - a simulation


def test_a_healthy_series_decides_a_p99_early() -> None:
    """Without violations, in well under 500 requests on average."""
    chance = random.Random(3)  # noqa: S311 - a simulation
    taken = [decided([chance.lognormvariate(2, 0.3) for _ in range(800)], P99) for _ in range(60)]
    assert all(decision.answer is True for decision in taken)
    assert sum(decision.n for decision in taken) / len(taken) < 450


def test_the_first_look_is_at_a_hundred_requests() -> None:
    """Even a dead server is failed by a hundred requests, not by two."""
    assert decided([math.inf] * 99, P99).answer is None
    assert decided([math.inf] * 300, P99).n == 100
    assert decided([FAST] * 300, P50).n == 100


def test_the_last_look_is_at_the_end_of_the_data() -> None:
    """381 requests pass a p99 between two looks, if they are all there are."""
    decision = Decision(P99, 100.0)
    for _ in range(381):
        decision.push(FAST)
    assert decision.answer is None
    assert decision.look() is True
    assert decided([FAST] * 380, P99).answer is None


@pytest.mark.parametrize(
    ("values", "answer"),
    [([FAST] * 400 + [SLOW] * 300, True), ([SLOW] * 300 + [FAST] * 9000, False)],
    ids=["pass", "fail"],
)
def test_the_first_answer_stands(values: list[float], answer: bool) -> None:
    """What comes after it is not counted, or waiting would pick the verdict."""
    decision = decided(values, P99)
    assert decision.answer is answer
    assert decision.n < len(values)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 1500), st.sampled_from([P50, P99, Rule(0.9, burst=3)]))
def test_a_series_that_repeats_itself_is_worth_less(seed: int, n: int, rule: Rule) -> None:
    """The design effect is at least 1 and the declared one, and does not depend on the limit."""
    values = series(seed, n)
    taken = [decided(values, rule, limit) for limit in (-1.0, 0.0, 1.0, math.inf)]
    assert all(decision.design_effect >= rule.least_effect >= 1 for decision in taken)
    by_requests: dict[int, set[float]] = {}
    for decision in taken:
        by_requests.setdefault(decision.n, set()).add(decision.design_effect)
    assert all(len(effects) == 1 for effects in by_requests.values())


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([P50, P99]), st.sampled_from([math.exp, math.atan, lambda v: 3 * v]))
def test_only_ranks_matter(seed: int, rule: Rule, change: Callable[[float], float]) -> None:
    """Any marginal distribution, of the same dependence, is decided the same."""
    values = series(seed, 800)
    plain = decided(values, rule, 0.0)
    changed = decided([change(value) for value in values], rule, change(0.0))
    assert (plain.n, plain.over, plain.answer) == (changed.n, changed.over, changed.answer)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 700))
def test_a_scalar_is_a_request_of_one_weight(seed: int, n: int) -> None:
    """There is one way through the code."""
    values = series(seed, n)
    plain, weighted = Decision(P99, 0.0), Decision(P99, 0.0)
    for value in values:
        plain.push(value)
        weighted.push([(value, 3.0)])
    assert (plain.look(), plain.n, plain.over) == (weighted.look(), weighted.n, weighted.over)


def test_a_request_violates_by_the_part_of_its_weight_over_the_limit() -> None:
    """One gap of ten over the limit is a tenth of a violation."""
    gaps: Observation = [(FAST, 9), (SLOW, 1)]
    decision = Decision(Rule(0.95), 100.0)
    for _ in range(60):
        decision.push(gaps)
    assert decision.over == pytest.approx(6)
    for _ in range(3000):
        decision.push(gaps)
    assert decision.answer is False


@given(st.just(math.nan) | st.just(math.inf))
def test_what_is_no_number_is_over(value: float) -> None:
    """It counts, and does not hide the dependence of the others."""
    decision = Decision(P99, 100.0)
    decision.push(value)
    assert decision.over == 1
