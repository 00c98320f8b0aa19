"""The search for a capacity, against servers whose capacity is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load.capacity import Capacity, find_capacity, sweep
from pytest_llmdeploy.load.trial import Trial

RATES = st.floats(min_value=1e-3, max_value=1e4)
PRECISIONS = st.floats(min_value=0.01, max_value=1)


def trial(rate: float, status: Status = Status.PASS, **found: object) -> Trial:
    return Trial(rate=rate, status=status, **found)  # type: ignore[arg-type]


def server(capacity: float, sure: float | None = None) -> Callable[[float], Trial]:
    """Holds up to `capacity`; beyond that, and up to `sure`, nobody can tell."""

    def try_at(rate: float) -> Trial:
        if rate <= capacity:
            return trial(rate)
        unsure = sure is not None and rate <= sure
        return trial(rate, Status.INCONCLUSIVE if unsure else Status.FAIL)

    return try_at


@settings(deadline=None)
@given(RATES, RATES, PRECISIONS)
def test_the_capacity_is_between_the_ends(capacity: float, start: float, precision: float) -> None:
    """Both ends are rates that were tried, as close together as asked for, and no trial more than
    bisection takes.
    """
    found = find_capacity(server(capacity), start, precision=precision, most_trials=100)
    low, high = found.passed, found.failed
    assert low is not None
    assert high is not None
    assert low <= capacity < high <= low * (1 + precision) * (1 + 1e-6)
    assert found.stopped == ""
    assert {low, high} <= {one.rate for one in found.trials}
    bracketing = 2 + math.ceil(abs(math.log2(capacity / start)))
    halvings = max(0, math.ceil(math.log2(math.log(2) / math.log1p(precision)) - 1e-6))
    assert len(found.trials) <= bracketing + halvings
    assert len({one.rate for one in found.trials}) == len(found.trials)


@settings(deadline=None)
@given(RATES, st.floats(min_value=1, max_value=20), RATES, PRECISIONS)
def test_what_is_not_decided_moves_no_end(
    capacity: float, width: float, start: float, precision: float
) -> None:
    """Where nobody can tell, the search stops and says so; the ends are right nevertheless."""
    sure = capacity * width
    found = find_capacity(server(capacity, sure), start, precision=precision, most_trials=100)
    undecided = [one for one in found.trials if one.holds is None]
    assert found.passed is None or found.passed <= capacity
    assert found.failed is None or found.failed > sure
    assert undecided == [one for one in found.trials[-1:] if one.holds is None]
    assert bool(undecided) == found.stopped.endswith("could not be decided")


@pytest.mark.parametrize("status", [Status.INCONCLUSIVE, Status.INVALID, Status.ERROR])
def test_a_first_trial_that_decides_nothing(status: Status) -> None:
    """There is no interval, and the reason is given."""
    found = find_capacity(lambda rate: trial(rate, status), 8)
    assert (found.passed, found.failed, str(found)) == (None, None, "not known")
    assert (len(found.trials), found.stopped) == (1, "8/s could not be decided")


def test_trials_are_bounded() -> None:
    """A server without a limit is asked a bounded number of times, and so is one without a gift."""
    endless = find_capacity(server(math.inf), 1, most_trials=5)
    assert [one.rate for one in endless.trials] == [1, 2, 4, 8, 16]
    assert (endless.passed, endless.failed, str(endless)) == (16, None, "at least 16/s")
    assert endless.stopped == "5 trials were made"
    hopeless = find_capacity(server(0), 1, most_trials=3)
    assert (hopeless.passed, str(hopeless)) == (None, "less than 0.25/s")


def test_time_is_bounded() -> None:
    """No trial begins when the time is over; the one that runs is finished."""
    now = 0.0

    def try_at(rate: float) -> Trial:
        nonlocal now
        now += 40
        return trial(rate)

    found = find_capacity(try_at, 1, most_seconds=100, clock=lambda: now)
    assert len(found.trials) == 3
    assert found.stopped == "100 s are over"
    assert len(sweep(try_at, [1, 2, 3, 4], most_seconds=50, clock=lambda: now).trials) == 2


def test_an_error_of_the_server_ends_it_with_what_is_known() -> None:
    """A trial that failed because the server died counts, and is the last one."""

    def try_at(rate: float) -> Trial:
        died = "the server died" if rate > 4 else ""
        return trial(rate, Status.FAIL if died else Status.PASS, problem=died)

    found = find_capacity(try_at, 1)
    assert [one.rate for one in found.trials] == [1, 2, 4, 8]
    assert (found.passed, found.failed, found.stopped) == (4, 8, "the server died")
    assert len(sweep(try_at, [2, 8, 16]).trials) == 2


def test_ctrl_c_ends_it_with_what_is_known() -> None:
    """The trial that was interrupted says nothing."""

    def try_at(rate: float) -> Trial:
        if rate > 2:
            raise KeyboardInterrupt
        return trial(rate)

    found = find_capacity(try_at, 1)
    assert (found.passed, len(found.trials), found.was_interrupted) == (2, 2, True)


def test_a_sweep_goes_upwards_and_past_failures() -> None:
    """Every rate once, the lowest first, whatever becomes of it."""
    found = sweep(server(3, sure=5), [8, 1, 4, 2, 2])
    assert [(one.rate, one.holds) for one in found.trials] == [
        (1, True),
        (2, True),
        (4, None),
        (8, False),
    ]
    assert (found.passed, found.failed, found.stopped) == (2, 8, "")
    assert str(found) == "2/s hold, 8/s do not"


def test_a_pass_beyond_a_failure_does_not_count() -> None:
    """A rate is not held because a higher one was, on a better day."""
    found = Capacity([trial(1), trial(2, Status.FAIL), trial(4)])
    assert (found.passed, found.failed) == (1, 2)


def test_the_knee_is_where_power_is_highest() -> None:
    """Of an M/M/1 queue that is at half its capacity: the rate over the time in the system."""
    capacity = 10.0
    queue = [
        trial(rate, served=rate, latencies={"e2el p50": 1000 / (capacity - rate)})
        for rate in range(1, 10)
    ]
    failed = trial(20, Status.FAIL, served=10.0, latencies={"e2el p50": math.inf})
    knee = Capacity([*queue, failed]).knee
    assert knee is not None
    assert knee.rate == 5
    assert knee.power == pytest.approx(25)
    undecided = trial(1, Status.INVALID, served=99.0, latencies={"e2el p50": 1.0})
    assert Capacity([*queue, undecided]).knee == knee
    assert Capacity([queue[0], failed]).knee is None
    assert Capacity([]).knee is None
