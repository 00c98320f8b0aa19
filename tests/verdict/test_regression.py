"""Whether a quantile is worse than it was: what passes, what fails, and how often wrongly."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.verdict import Corridor, Quantile, Rule, Tolerated, regression

RULE = Rule(0.5)


def latencies(n: int, factor: float = 1.0, seed: int = 1, spread: float = 0.1) -> list[float]:
    random_ = random.Random(seed)  # noqa: S311 - a simulation
    return [100 * factor * random_.lognormvariate(0, spread) for _ in range(n)]


def status(now: list[float], was: list[float], tolerance: float) -> Status:
    return regression(Quantile(now, RULE), was, tolerance).status


def test_as_fast_as_before_passes() -> None:
    found = regression(Quantile(latencies(400, seed=2), RULE), latencies(400), 0.1)
    assert found.status is Status.PASS
    assert found.requirement == "≤ baseline +10 %"
    assert found.result.startswith("≤ +")
    assert "→" in found.result
    assert found.bound is not None
    assert 0 < found.bound <= 0.1
    assert found.margin == pytest.approx(0.1 - found.bound)
    assert found.evidence["baseline"]["n"] == 400


def test_slower_beyond_the_tolerance_fails() -> None:
    found = regression(Quantile(latencies(400, 1.3, seed=2), RULE), latencies(400), 0.1)
    assert found.status is Status.FAIL
    assert found.result.startswith("≥ +")
    assert found.bound is not None
    assert 0.1 <= found.bound < 0.3
    assert found.margin is not None
    assert found.margin < 0


def test_a_tolerance_is_what_decides() -> None:
    """The same two runs, 30 % apart."""
    was, now = latencies(1000), latencies(1000, 1.3, seed=2)
    assert status(now, was, 0.1) is Status.FAIL
    assert status(now, was, 0.3) is Status.INCONCLUSIVE
    assert status(now, was, 0.5) is Status.PASS


def test_faster_passes_without_any_tolerance() -> None:
    assert status(latencies(400, 0.8), latencies(400), 0.0) is Status.PASS


def test_a_short_run_decides_nothing_and_says_how_many_would() -> None:
    found = regression(Quantile(latencies(120, seed=3), RULE), latencies(4000), 0.02)
    assert found.status is Status.INCONCLUSIVE
    assert found.result.startswith("about ")
    assert "it takes" in found.hint
    assert found.bound is None


def test_a_short_baseline_is_what_is_to_be_mended() -> None:
    found = regression(Quantile(latencies(4000), RULE), latencies(99), 0.1)
    assert found.status is Status.INCONCLUSIVE
    assert found.hint.startswith("the baseline's 99 requests do not tell what it was")
    none = regression(Quantile(latencies(4000), RULE), [], 0.1)
    assert none.status is Status.INCONCLUSIVE
    assert none.measured is None


def test_what_this_run_waits_for_is_not_asked_of_the_baseline() -> None:
    """A min_duration of this run may be more requests than the baseline has."""
    patient = Quantile(latencies(600, seed=2), replace(RULE, least=600))
    assert regression(patient, latencies(400), 0.1).status is Status.PASS


def test_a_coarse_baseline_is_what_is_to_be_mended() -> None:
    """This run is long enough to be known to be between what the baseline may have been."""
    now = latencies(20_000, 1.02, seed=2, spread=0.5)
    found = regression(Quantile(now, RULE), latencies(200, spread=0.5), 0.0)
    assert found.status is Status.INCONCLUSIVE
    assert found.hint.startswith("the baseline tells no more than that it was ")


def test_a_run_that_is_worse_than_may_be_but_not_surely_is_said_to_be_short() -> None:
    """It is beyond the lower end, and not yet known to be beyond the upper one."""
    found = regression(Quantile(latencies(300, 1.12, seed=2), RULE), latencies(400), 0.1)
    assert found.status is Status.INCONCLUSIVE
    assert "do not tell whether it is beyond that and the tolerance" in found.hint
    assert found.hint.endswith(": raise max_duration or the rate")


def test_failed_requests_fail() -> None:
    found = regression(Quantile([math.inf] * 200, RULE), latencies(400), 0.1)
    assert found.status is Status.FAIL
    assert found.result.endswith(" ms → unbounded")
    was_broken = regression(Quantile(latencies(400), RULE), [math.inf] * 400, 0.1)
    assert was_broken.status is Status.PASS
    assert was_broken.result.startswith("unbounded → ")


def test_what_spoils_a_measurement_spoils_it() -> None:
    was, now = latencies(400), latencies(400, seed=2)
    broken = Quantile(now, RULE, problem="the server died")
    assert regression(broken, was, 0.1).status is Status.ERROR
    doubtful = Quantile(now, RULE, invalid="the client was late")
    assert regression(doubtful, was, 0.1).status is Status.INVALID
    assert regression(Quantile([], RULE), was, 0.1).status is Status.ERROR


@pytest.mark.parametrize(
    ("factor", "wrong"), [(1.1, Status.PASS), (1.1, Status.FAIL), (1.099, Status.FAIL)]
)
def test_wrong_answers_are_as_rare_as_said(factor: float, wrong: Status) -> None:
    """At the tolerance itself, either answer is wrong; every run ends as soon as it is decided."""
    runs, found = 150, 0
    for seed in range(runs):
        was = latencies(300, seed=2 * seed)
        now = latencies(600, factor, seed=2 * seed + 1)
        found += status(now, was, 0.1) is wrong
    assert found / runs <= 0.05


def test_a_corridor_decides_as_the_row_does() -> None:
    """And when the run is between its limits, it is over without an answer."""
    was, wide = latencies(400), latencies(200, spread=0.5)
    assert outcome([], was, 0.1) == (False, None)
    for factor in (1.0, 1.3):
        now = latencies(2000, factor, seed=2)
        row = regression(Quantile(now, RULE), was, 0.1)
        assert outcome(now, was, 0.1) == (True, row.status is Status.PASS)
    between = latencies(20_000, 1.02, seed=2, spread=0.5)
    assert outcome(between, wide, 0.0) == (True, None)


def outcome(now: list[float], was: list[float], tolerance: float) -> tuple[bool, bool | None]:
    """Whether the corridor is over, and its answer."""
    tolerated = Tolerated.of(was, RULE, tolerance)
    corridor = Corridor.on(tolerated, tolerated.rule)
    for value in now:
        corridor.push(value)
    return corridor.is_over, corridor.answer
