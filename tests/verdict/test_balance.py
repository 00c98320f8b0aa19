"""The test of an even load: exact values, its promises, and what it makes of bursts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.verdict import BalanceDecision, BalanceRule, Spread
from pytest_llmdeploy.verdict.balance import dispersion

TWO = BalanceRule(engines=2, tolerance=0.3, alpha=0.05, beta=0.05)
rules = st.builds(
    BalanceRule,
    st.integers(3, 16),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([0.05, 0.01]),
    st.sampled_from([0.05, 0.01]),
)
requests = st.integers(1, 5000)


def exact(shares: Sequence[float], limit: float, requests: int, count: int) -> float:
    """The mixture of likelihood ratios, written out."""
    ratios = [
        (share / limit) ** count * ((1 - share) / (1 - limit)) ** (requests - count)
        for share in shares
    ]
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize(("n", "count"), [(100, 50), (100, 60), (100, 65), (40, 10), (7, 7)])
def test_the_evidence_is_the_mixture(n: int, count: int) -> None:
    """Shares between the mean and the limit for a PASS, beyond the limit for a FAIL."""
    good = [0.5, 0.5375, 0.575, 0.6125]
    bad = [0.6875, 0.725, 0.8, 0.825, 0.978125]
    assert math.exp(TWO.log_evidence_for(n, count)) == pytest.approx(exact(good, 0.65, n, count))
    assert math.exp(TWO.log_evidence_against(n, count)) == pytest.approx(exact(bad, 0.65, n, count))


@pytest.mark.parametrize(("rule", "most"), [(TWO, 0.65), (BalanceRule(8, 1.0, 0.05, 0.05), 0.25)])
def test_the_evidence_is_fair_at_the_limit(rule: BalanceRule, most: float) -> None:
    """Its mean over all outcomes is 1 when the share is the limit: Ville's inequality needs it."""
    chances = [math.comb(60, k) * most**k * (1 - most) ** (60 - k) for k in range(61)]
    for evidence in (rule.log_evidence_for, rule.log_evidence_against):
        mean = math.fsum(p * math.exp(evidence(60, k)) for k, p in enumerate(chances))
        assert mean == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(rules, requests, st.floats(0, 1), st.floats(0, 1))
def test_a_busier_engine_is_never_better(
    rule: BalanceRule, n: int, share: float, more: float
) -> None:
    """More on one engine among as many requests: less evidence for, more against."""
    few, many = n * share, n * (share + (1 - share) * more)
    assert rule.log_evidence_for(n, many) <= rule.log_evidence_for(n, few) + 1e-9
    assert rule.log_evidence_against(n, many) >= rule.log_evidence_against(n, few) - 1e-9


@settings(max_examples=30, deadline=None)
@given(rules, st.floats(1, 20))
def test_what_it_takes_is_exact(rule: BalanceRule, effect: float) -> None:
    """So many evenly shared requests pass, and one fewer does not, but for the least number."""
    needed = rule.requests_to_pass(effect)
    assert rule.decide(needed, needed / rule.engines, effect) is True
    if needed > rule.least:
        assert rule.decide(needed - 1, (needed - 1) / rule.engines, effect) is None


@pytest.mark.parametrize(
    ("engines", "tolerance", "needed"),
    [(2, 0.3, 80), (2, 0.05, 2817), (8, 0.3, 643), (8, 0.05, 20333)],
)
def test_how_many_it_takes(engines: int, tolerance: float, needed: int) -> None:
    """The figures in the documentation."""
    assert BalanceRule(engines, tolerance, 0.05, 0.05).requests_to_pass() == needed


@pytest.mark.parametrize("tolerance", [0, 1, 1.5])
def test_a_rule_that_says_nothing(tolerance: float) -> None:
    """Exactly even is never shown, and twice the mean never exceeded by one of two."""
    with pytest.raises(ValueError, match="between 0 and engines - 1"):
        BalanceRule(2, tolerance, 0.05, 0.05)


def test_independent_requests_are_not_dispersed() -> None:
    """Nor are those that go to each engine in turn: there is no bonus for that."""
    independent = dealt(0.5, 1, random.Random(3))  # noqa: S311
    windows = [next(independent) for _ in range(200)]
    assert dispersion(windows) < 1.5
    assert dispersion([[20, 20]] * 64) == 1
    assert dispersion([[40, 0]] * 64) == 1


def test_bursts_longer_than_a_window_are_seen() -> None:
    """Four windows to one engine, then four to the other: seen in windows of windows."""
    assert dispersion(([[10.0, 0.0]] * 4 + [[0.0, 10.0]] * 4) * 8) > 30


def test_the_first_answer_stands() -> None:
    """What comes after it is not counted."""
    decision = BalanceDecision(TWO)
    for _ in range(20):
        decision.push([5, 5])
    assert decision.answer is True
    counted = decision.n
    for _ in range(100):
        decision.push([10, 0])
    assert (decision.look(), decision.n) == (True, counted)


def dealt(share: float, burst: float, draw: random.Random) -> Iterator[list[float]]:
    """Requests to two engines, in bursts of geometric length with this mean, three at a time."""
    engine, window = 0, [0.0, 0.0]
    while True:
        engine = int(draw.random() >= share)
        length = 1
        while draw.random() > 1 / burst:
            length += 1
        for _ in range(length):
            window[engine] += 1
            if sum(window) == 3:
                yield window
                window = [0.0, 0.0]


def answers(share: float, burst: float, runs: int = 200, most: int = 900) -> list[bool | None]:
    """What is decided within so many requests, run after run."""
    draw, found = random.Random(5), []  # noqa: S311
    for _ in range(runs):
        decision, windows = BalanceDecision(TWO), dealt(share, burst, draw)
        while decision.n < most and decision.answer is None:
            decision.push(next(windows))
        found.append(decision.look())
    return found


@pytest.mark.parametrize("burst", [1, 2, 5, 10])
def test_wrong_answers_are_rare_at_the_limit(burst: float) -> None:
    """5 % each way, of independent requests and of bursts, looking as often as the runner does."""
    found = answers(0.65, burst)
    assert found.count(True) <= 0.05 * len(found)
    assert found.count(False) <= 0.05 * len(found)


@pytest.mark.parametrize(("share", "answer"), [(0.5, True), (0.8, False), (1.0, False)])
def test_what_is_clear_is_decided(share: float, answer: bool) -> None:
    """Even engines pass, and one that gets a fifth, or nothing, fails."""
    found = answers(share, 1, runs=40)
    assert found.count(answer) == len(found)


def test_the_measures() -> None:
    """One of eight a fifth below the mean of the others: it hides in S, and shows in D and R."""
    spread = Spread([1.0] * 7 + [0.8])
    assert spread.excess == pytest.approx(0.026, abs=0.001)
    assert spread.balancedness == pytest.approx(0.975, abs=0.001)
    assert spread.range == pytest.approx(0.205, abs=0.001)
    assert spread.variation == pytest.approx(0.068, abs=0.001)
    assert spread.deviation == pytest.approx(0.179, abs=0.001)
