"""Whether a server keeps up, on queues whose answer is known."""

from __future__ import annotations

import random

import pytest

from pytest_llmdeploy.load.backlog import Service, service

RATE = 20.0


def queue(
    seconds: float, capacity: float, latency: float = 0.2, seed: int = 1, stall: float = 0.0
) -> list[tuple[float, float]]:
    """(due, ended) of Poisson arrivals at `RATE` at a server of so many requests per second, which
    does nothing for `stall` seconds out of every four.
    """
    draw, now, free = random.Random(seed), 0.0, 0.0  # noqa: S311 - arrivals
    phase = draw.uniform(0, 4)
    found = []
    while (now := now + draw.expovariate(RATE)) < seconds:
        free = max(free, now) + 1 / capacity
        if (into := (free + phase) % 4) < stall:
            free += stall - into
        found.append((now, free + latency))
    return found


def served(seconds: float, capacity: float, completed: float = 1.0) -> Service:
    # Who watches does not know how requests will end that are in flight.
    intervals = [(due, min(ended, seconds)) for due, ended in queue(seconds, capacity)]
    return service(completed, RATE, intervals, 0.0, seconds)


@pytest.mark.parametrize(
    ("seconds", "capacity", "answer"),
    [
        (120, 40, True),
        (120, 200, True),
        (30, 15, False),
        (120, 18, False),
        (1, 40, None),
    ],
    ids=["stable", "idle", "overload", "slight overload", "too short"],
)
def test_keeps_up(seconds: float, capacity: float, answer: bool | None) -> None:
    """A stable queue passes, an overload fails, and what is too short for either is neither."""
    assert served(seconds, capacity).keeps_up is answer


def test_the_growth_is_what_the_server_falls_behind_by() -> None:
    """At 15 of 20 requests per second, the backlog grows by five."""
    found = served(60, 15)
    assert found.growth == pytest.approx(5, abs=0.7)
    assert found.share == pytest.approx(0.75, abs=0.04)
    assert found.low <= found.share <= found.high


def test_a_shrinking_backlog_is_not_more_than_all() -> None:
    """Working off what had piled up before does not make up for failures."""
    intervals = [(0.0, 10.0 * index / 100) for index in range(100)]
    found = service(0.97, RATE, intervals, 0.0, 10.0)
    assert found.growth < 0
    assert found.share == 0.97
    assert found.keeps_up is False


def test_failures_are_not_served() -> None:
    """A stable queue of which three in a hundred fail does not keep up."""
    assert served(120, 200, completed=0.97).keeps_up is False


@pytest.mark.parametrize(
    ("capacity", "stall", "wrong"),
    [(100, 0.0, False), (100, 1.2, False), (60, 1.2, False), (17, 0.0, True), (17, 1.2, True)],
    ids=["steady", "stalling", "stalling and busy", "overload", "stalling overload"],
)
@pytest.mark.parametrize("seconds", [8, 12, 27])
def test_stalls_are_told_from_overload(
    seconds: float, capacity: float, stall: float, wrong: bool
) -> None:
    """A server that stalls for a second now and then keeps up; one that is too slow does not."""
    answers = []
    for seed in range(100):
        flights = queue(seconds, capacity, seed=seed, stall=stall)
        seen = [(due, min(ended, seconds)) for due, ended in flights]
        answers.append(service(1.0, RATE, seen, 0.0, seconds).keeps_up)
    assert answers.count(wrong) <= 5
