"""A rule says what is decided when, and what it takes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.verdict import Rule
from pytest_llmdeploy.verdict.dependence import thinned
from pytest_llmdeploy.verdict.rule import beta_for

P99 = Rule(0.99)
rules = st.builds(
    Rule,
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
    st.sampled_from([0.05, 0.01]),
    burst=st.sampled_from([1.0, 2.0, 5.0]),
)


@pytest.mark.parametrize(
    ("p", "requests"),
    [(0.5, range(100, 101)), (0.95, range(100, 101)), (0.999, range(3780, 3830))],
)
def test_requests_by_percentile(p: float, requests: range) -> None:
    """A hundred at least; a p99.9 takes ten times as many as a p99."""
    assert Rule(p).requests_to_pass() in requests


@pytest.mark.parametrize(("violations", "requests"), [(0, 381), (1, 691), (5, 1442)])
def test_requests_by_violations(violations: int, requests: int) -> None:
    """Every violation has to be outweighed."""
    assert P99.requests_to_pass(violations) == requests


def test_a_declared_burst_takes_its_design_effect_more() -> None:
    """Bursts of 5 count as 9 each in what they vary by."""
    assert Rule(0.99, burst=5).requests_to_pass() == math.ceil(9 * 380.5)


@given(rules, st.integers(0, 20), st.floats(1, 20))
def test_requests_to_pass_is_tight(rule: Rule, violations: int, estimated: float) -> None:
    """So many pass, and one fewer do not."""
    enough = rule.requests_to_pass(violations, estimated)
    assert rule.decide(enough, violations, estimated) is True
    assert rule.decide(enough - 1, violations, estimated) is not True


def test_nothing_is_decided_on_few() -> None:
    """However clear it is."""
    rule = Rule(0.5)
    assert rule.decide(99, 0, 1.0) is rule.decide(99, 99, 1.0) is None
    assert rule.decide(100, 0, 1.0) is True
    assert rule.decide(100, 100, 1.0) is False


@given(rules, st.floats(1, 50), st.integers(1, 10_000))
def test_an_estimate_from_few_requests_is_doubted(rule: Rule, effect: float, n: int) -> None:
    """What the requests are divided by is more than the estimate, and comes down to it."""
    least = max(thinned(effect, 1 - rule.p), rule.least_effect)
    assert rule.effect(n, effect) >= rule.effect(n + 1, effect) >= least
    assert rule.effect(10**9, effect) == pytest.approx(least, rel=1e-4)


@given(rules, st.integers(0, 30), st.floats(1, 5), st.integers(0, 3000))
def test_the_longest_burst_is_tight(rule: Rule, violations: int, effect: float, more: int) -> None:
    """The same counts pass with that burst declared, and no longer with a longer one."""
    n = rule.requests_to_pass(violations, effect) + more
    longest = rule.longest_burst(n, violations, max(effect, rule.least_effect))
    # The estimate's own minimum is not in question here.
    for factor, passes in ((0.999, True), (1.001, False)):
        burst = 1 + (longest - 1) * factor
        declared = Rule(rule.p, rule.alpha, burst=max(1.0, burst))
        effective = max(declared.least_effect, 1.0)
        if burst >= max(rule.burst, (effect + 1) / 2):
            assert declared.test.passes(n / effective, violations / effective) is passes


@pytest.mark.parametrize(
    ("p", "levels"),
    [(0.5, [0.5, 0.75]), (0.9, [0.5, 0.9]), (0.95, [0.5, 0.9]), (0.97, [0.7, 0.9]), (0.99, [0.9])],
)
def test_dependence_is_looked_for_where_there_are_events(p: float, levels: list[float]) -> None:
    """Near the percentile, and where ten times as many requests lie above as p allows."""
    assert Rule(p).levels == levels


def test_looks_are_spaced_by_a_twentieth() -> None:
    """The first at 100 requests, then every tenth, then every twentieth of what there is."""
    looks = [100]
    while looks[-1] < 3000:
        looks.append(P99.next_look(looks[-1]))
    assert P99.next_look(0) == 100
    assert looks[:4] == [100, 110, 120, 130]
    assert len(looks) < 70


@pytest.mark.parametrize(
    "fields",
    [
        {"p": 0.0},
        {"p": 1.0},
        {"alpha": 0.0},
        {"beta": 1.0},
        {"burst": 0.5},
        {"burst": math.nan},
        {"indifference": (0.01, 0.01)},
        {"indifference": (0.0, 0.01)},
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused(fields: dict[str, float]) -> None:
    """With what is allowed."""
    with pytest.raises(ValueError, match=r"between 0 and 1|one request|good < bad"):
        Rule(**{"p": 0.99, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("claims", "beta"), [(0, 0.05), (1, 0.05), (5, 0.01)])
def test_requirements_share_the_budget_of_wrong_failures(claims: int, beta: float) -> None:
    """Several requirements together fail a good deployment no more often than one."""
    assert beta_for(0.95, claims) == pytest.approx(beta)
