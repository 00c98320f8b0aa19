"""What a rule promises, simulated with the package's own decision.

The seeds are fixed: a simulation either keeps a bound or not. `make bench-verdict` prints more.
"""

import pytest

from benchmarks.verdict.operating import Operating, operating
from benchmarks.verdict.rules import Binomial, EarlyStopping, Observed, Ours
from benchmarks.verdict.series import Autoregressive, Bursts, Series
from pytest_llmdeploy.verdict import Rule

P99 = Rule(0.99)
dependence = pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])


def simulated(rule: Rule, series: Series, runs: int, cap: int = 3000) -> Operating:
    """One rule on its own."""
    return operating({"": Ours(rule)}, series, runs=runs, cap=cap, seed=11)[""]


@dependence
@pytest.mark.parametrize(
    ("p", "runs", "cap"), [(0.99, 120, 3000), (0.9, 120, 1200), (0.5, 80, 800)], ids=str
)
def test_wrong_answers_are_rare_at_exactly_the_allowed_fraction(
    p: float, runs: int, cap: int, rho: float
) -> None:
    """5 % at the most, each way, for independent latencies and an AR(1)."""
    found = simulated(Rule(p), Autoregressive(rho, round(1 - p, 9)), runs, cap)
    assert found.passed <= 0.05
    assert found.failed <= 0.05


@dependence
def test_wrong_answers_stay_rare_when_one_waits(rho: float) -> None:
    """Likewise for a p99 within 10,000 requests."""
    found = simulated(P99, Autoregressive(rho, 0.01), runs=60, cap=10_000)
    assert found.passed <= 0.05
    assert found.failed <= 0.05


@pytest.mark.parametrize("length", [2, 5, 20])
def test_a_declared_burst_keeps_the_promise(length: int) -> None:
    """1 % over in bursts of that mean length: 5 % wrong at the most."""
    found = simulated(Rule(0.99, burst=length), Bursts(length, 0.01), runs=80)
    assert found.passed <= 0.05
    assert found.failed <= 0.05


def test_bursts_that_are_not_declared_break_the_promise() -> None:
    """Why there is something to declare, and a simulation that can fail."""
    found = simulated(P99, Bursts(5, 0.01), runs=40)
    assert found.passed > 0.3


@pytest.mark.parametrize(
    ("over", "requests", "passes"), [(0.001, 700, True), (0.02, 1500, False), (0.05, 200, False)]
)
def test_what_is_clear_is_decided_soon(over: float, requests: int, passes: bool) -> None:
    """The mean number of requests, of independent latencies; and nearly all are decided rightly."""
    found = simulated(P99, Autoregressive(0.0, over), runs=100)
    assert found.requests <= requests
    assert (found.passed if passes else found.failed) > 0.9
    assert (found.failed if passes else found.passed) <= 0.01


def test_an_indifference_zone_is_mostly_decided() -> None:
    """At its good fraction it passes, at its bad one it fails."""
    rule = Rule(0.99, indifference=(0.005, 0.01))
    good = simulated(rule, Autoregressive(0.0, 0.005), runs=40, cap=6000)
    bad = simulated(rule, Autoregressive(0.0, 0.01), runs=40, cap=6000)
    assert good.passed >= 0.85
    assert bad.failed > 0.9
    assert bad.passed <= 0.05


def test_the_rules_beside_are_what_they_are_known_for() -> None:
    """Exact binomial: 299 clean requests at 95 %; MLPerf: 459 at 99 %, 662 with one over; the
    observed percentile passes with 1 % over.
    """
    clean, one_over = [-1.0] * 700, [1.0] + [-1.0] * 699
    assert [Binomial(0.99, n)(clean)[0] for n in (298, 299)] == [None, True]
    assert [EarlyStopping(0.99, n)(clean)[0] for n in (458, 459)] == [None, True]
    assert [EarlyStopping(0.99, n)(one_over)[0] for n in (661, 662)] == [None, True]
    assert Binomial(0.99, 100)([1.0] * 100) == (False, 100)
    assert Observed(0.99, 100)(one_over) == (True, 100)
    assert Observed(0.99, 99)(one_over) == (False, 99)
