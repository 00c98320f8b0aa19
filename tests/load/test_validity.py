"""Whose doing it is, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_llmdeploy.load.breakdown import Breakdown
from pytest_llmdeploy.load.counters import (
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    STARTED,
    Counted,
    Counters,
)
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.load.validity import Conditions, faults, lateness
from pytest_llmdeploy.spec import Workload
from tests.load.workloads import workload

REQUIRE = {"ttft": {"p99": "1s"}, "tpot": {"p99": "400ms"}}


def sent(lag: float = 0.0, count: int = 200) -> Sequence[Sample]:
    """Requests that were each sent `lag` seconds after they were due."""
    return [
        Sample(due=due, sent=due + lag, ended=due + 9, outcome=Outcome.OK, stamps=[(due + 1, 1)])
        for due in range(count)
    ]


def counted(before: dict[str, float], after: dict[str, float]) -> Counted:
    return Counted(Counters(before, 1.0), Counters(after, 2.0))


GOOD = Conditions(
    lags=[0.001] * 1000,
    busy=[0.1, 0.2],
    wall_step=0.01,
    seconds=60,
    requests=200,
    counted=counted({PREFIX_QUERIES: 0, PREFIX_HITS: 0}, {PREFIX_QUERIES: 1000, PREFIX_HITS: 10}),
    breakdown=Breakdown(0.1, 50, 1, 5, 40, 0),
)


def found(
    samples: Sequence[Sample] | None = None, work: Workload | None = None, **changes: Any
) -> Sequence[str]:
    work = work or workload(require=REQUIRE)
    conditions = replace(GOOD, **changes)
    late = lateness(work, samples or sent(), 1e9, conditions)
    return [*faults(work, conditions), *late.reasons]


def test_nothing_is_wrong_with_a_quiet_client() -> None:
    """A run on an idle machine counts."""
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"samples": sent(0.06)}, "requests were sent up to 60 ms late, 50 ms are allowed"),
        ({"lags": [0.03] * 1000}, "the client was late by 30 ms, 20 ms are allowed"),
        ({"busy": [0.9, 0.95]}, "a client process used 92.5 % of its core"),
        ({"wall_step": -3.0}, "the clock stepped by 3,000 ms"),
        ({"breakdown": Breakdown(0.1, 50, 1, 5, 40, 9)}, "9 requests of somebody else"),
        (
            {"counted": counted({PREFIX_QUERIES: 0, PREFIX_HITS: 0},
                                {PREFIX_QUERIES: 100, PREFIX_HITS: 60})},
            "60 % of the prompt tokens were in the prefix cache, 0 % are declared",
        ),
        ({"counted": counted({STARTED: 5}, {STARTED: 7})}, "process_start_time_seconds changed"),
        ({"counted": counted({PROMPT_TOKENS: 5}, {PROMPT_TOKENS: 4})}, "prompt_tokens_total fell"),
        ({"problem": "a worker process ended"}, "a worker process ended"),
    ],
    ids=["sent-late", "loop-late", "busy", "clock", "others", "cached", "restart", "fell", "died"],
)  # fmt: skip
def test_what_is_not_the_servers_doing(changes: dict[str, Any], why: str) -> None:
    """Each fault of the client or the set-up is named, with its figures, and no other."""
    (said,) = found(**changes)
    assert why in said


def test_what_was_never_sent_is_the_clients_fault() -> None:
    """The server can't be late for requests that did not come."""
    work = workload(rate="1/s", require={"ttft": {"p50": "100s"}})
    late = [*sent(count=90), *(replace(s, sent=500.0) for s in sent()[90:100])]
    reasons = lateness(work, late, 100, GOOD).reasons
    assert "only 90 of 100 requests that were due had been sent" in reasons


def test_what_the_client_may_have_added_is_its_worst() -> None:
    """The latest request, and the longest time that the event loop did not turn."""
    samples = [*sent(), *sent(0.25, count=1)]
    late = lateness(workload(), samples, 1e9, replace(GOOD, lags=[0.001, 0.5]))
    assert late.most_ms == pytest.approx(750)


def test_what_a_limit_tolerates_goes_with_the_limit() -> None:
    """Five percent of the limit, or 5 ms; without a limit on latencies nothing is asked."""
    tight = workload(require={"ttft": {"p99": "20ms"}})
    assert found(sent(0.004), tight) == []
    assert len(found(sent(0.006), tight)) == 1
    assert found(sent(5.0), workload(require={"errors": "0%"})) == []


def test_goodput_has_limits_too() -> None:
    """They tolerate no more than those of a percentile."""
    work = workload(require={"goodput": {"share": "90%", "ttft": "1s"}})
    assert len(found(sent(0.06), work)) == 1


def test_a_declared_prefix_may_hit() -> None:
    """What the workload says that all its prompts share is expected in the cache."""
    hits = counted({PREFIX_QUERIES: 0, PREFIX_HITS: 0}, {PREFIX_QUERIES: 100, PREFIX_HITS: 50})
    work = workload(require=REQUIRE, input_tokens=100, shared_prefix=50)
    assert found(None, work, counted=hits) == []
