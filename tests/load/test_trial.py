"""Whether all limits of a workload hold at a rate, on made and on real traffic."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Evidence, Status
from pytest_llmdeploy.load import Sample, WorkloadTraffic, runner, trial
from pytest_llmdeploy.load.backlog import Service
from pytest_llmdeploy.load.claims import Budget
from pytest_llmdeploy.load.runner import run_trial, run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.load.trial import at_capacity, at_rate, holds, judgements
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.units import Rate
from tests.checks.scenes import SERVED, STEADY, Scene, failed, sample
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin

BUDGET = Budget(0.05, 0.05)
SEED = 20
LIMITED = {"ttft": {"p50": "500ms"}, "errors": "1%", "preemptions": 2}
ALL = {
    **{metric: {"p50": "1s", "p90": "2s"} for metric in ("ttft", "tpot", "itl", "e2el", "stall")},
    "goodput": {"share": "50%", "ttft": "1s"},
    "errors": "1%",
    "preemptions": 2,
}


def samples(ttft: float) -> list[Sample]:
    """200 good requests, one every 50 ms, whose TTFT is up to 10 % shorter than this."""
    draw = random.Random(SEED)  # noqa: S311 - independent, as far as a test can tell
    return [sample(ttft=ttft * draw.uniform(0.9, 1), due=n / 20) for n in range(200)]


def traffic(require: Any = LIMITED, **found: Any) -> WorkloadTraffic:
    """200 good requests in 10 s, at 20/s, unless told otherwise."""
    given: dict[str, Any] = {
        "workload": at_rate(workload(rate="20/s", require=require), 20),
        "budget": BUDGET,
        "samples": samples(200),
        "start": 0.0,
        "end": 10.0,
        "began_at": 1.0,
        "running_peak": Evidence(4, "sequences", "/metrics"),
        "preempted": Evidence(0, "preemptions", "/metrics"),
        "service": SERVED,
        **found,
    }
    return WorkloadTraffic(**given)


def test_all_hold() -> None:
    """With the figures that the table shows."""
    found = holds(traffic())
    assert (found.holds, found.limit, found.reason, found.problem) == (True, "", "", "")
    assert list(found.judgements) == ["TTFT p50", "Errors", "Keeps up", "Preemptions"]
    assert (found.rate, found.requests, found.seconds) == (20, 200, 10)
    assert found.served == pytest.approx(20)
    expected = {"ttft p50": 190, "ttft p99": 200, "tpot p50": 20, "tpot p99": 20, "e2el p50": 250}
    assert found.latencies == pytest.approx(expected, rel=0.02)
    assert found.power == pytest.approx(20 / 0.25, rel=0.02)


SLOW = samples(900)
SOME_FAILED = [*samples(200)[:190], *(replace(failed(), due=9.5 + n / 20) for n in range(10))]


@pytest.mark.parametrize(
    ("found", "status", "limit", "reason"),
    [
        ({"samples": SLOW}, Status.FAIL, "TTFT p50", "≥ 8"),
        ({"samples": SOME_FAILED}, Status.FAIL, "Errors", "5 %"),
        ({"service": Service(0.9, 0.88, 0.92, 1, 2, 0.1)}, Status.FAIL, "Keeps up", "90 % served"),
        ({"preempted": Evidence(3, "", "/metrics")}, Status.FAIL, "Preemptions", "3"),
        ({"samples": SLOW[:3]}, Status.INCONCLUSIVE, "TTFT p50", "requests"),
        ({"service": Service(0.98, 0.9, 1, 1, 0, 1)}, Status.INCONCLUSIVE, "Keeps up", "98 %"),
        ({"service": None}, Status.ERROR, "Keeps up", "no request was measured"),
        ({"samples": (), "service": None}, Status.ERROR, "TTFT p50", "no request was measured"),
        ({"invalid": ["the clock stepped"]}, Status.INVALID, "", "the clock stepped"),
        ({"interrupted": "the server died"}, Status.ERROR, "", "the server died"),
        (
            {"samples": SOME_FAILED, "interrupted": "the server died"},
            Status.FAIL,
            "Errors",
            "5 %",
        ),
    ],
)
def test_one_does_not_hold(found: dict[str, Any], status: Status, limit: str, reason: str) -> None:
    """It is named; a failure is one whatever else went wrong, and nothing else is a no."""
    got = holds(traffic(**found))
    assert (got.status, got.limit) == (status, limit)
    assert reason in got.reason
    assert got.holds is (False if status is Status.FAIL else None)
    assert got.problem == found.get("interrupted", "")


@pytest.mark.parametrize("spoilt", [{"invalid": ["late"]}, {"interrupted": "died"}])
def test_a_spoilt_run_holds_nothing(spoilt: dict[str, Any]) -> None:
    """Not even when the only limit is a census, whose row passes."""
    one = traffic({"errors": "1%"}, **spoilt)
    only_errors = one.workload.require.model_copy(update={"keeps_up": None})
    changed = one.workload.model_copy(update={"require": only_errors})
    found = holds(replace(one, workload=changed))
    assert found.judgements["Errors"].status is Status.PASS
    assert found.holds is None


def test_without_any_limit_nothing_holds() -> None:
    """An empty list of limits is not a yes."""
    one = traffic({})
    none = one.workload.model_copy(update={"require": type(one.workload.require)()})
    assert holds(replace(one, workload=none)).status is Status.ERROR


def test_the_judgements_are_those_of_the_rows() -> None:
    """Every limit on the workload, with the same figures as the check of it has."""
    require = {**ALL, "keeps_up": True}
    scene = Scene(spec={"workloads": [{**STEADY, "require": require}]})
    spec = scene.declared()
    found = judgements(scene._traffic(spec)["steady"])
    names = {name.split()[0].lower() for name in found}
    assert names == {*require, "keeps"} - {"keeps_up"}
    assert len(found) == 14
    for name, judgement in found.items():
        check = "keeps_up" if name == "Keeps up" else name.split()[0].lower()
        if not name.endswith("p90"):
            row = scene.judge(check)
            assert (row.status, row.result) == (judgement.status, judgement.result)
            assert (row.requirement, row.evidence) == (judgement.requirement, judgement.evidence)


def seconds(tried: Workload) -> tuple[float, float]:
    """The least and the most that a trial takes."""
    return tried.min_duration.seconds, tried.max_duration.seconds


def test_a_workload_at_another_rate() -> None:
    """What it requires stays, and it must keep up, for long enough; how many run is no limit."""
    require = {**LIMITED, "concurrent_sequences": 5, "capacity": "9/s"}
    given = workload(rate="3/s", warmup="1s", max_duration="60s", require=require)
    tried = at_rate(given, 12.5)
    assert tried.rate == pytest.approx(12.5)
    assert seconds(tried) == (8, 60)
    asked = tried.require
    assert (asked.keeps_up, asked.concurrent_sequences, asked.capacity) == (True, None, None)
    assert (asked.ttft, asked.errors, asked.preemptions) == (
        given.require.ttft,
        given.require.errors,
        given.require.preemptions,
    )
    assert seconds(at_rate(workload(warmup="1s", max_duration="5s"), 1)) == (4, 5)
    assert seconds(at_rate(workload(min_duration="20s"), 1)) == (20, 600)
    # A schedule of millions of requests would only fill the memory.
    assert seconds(at_rate(workload(warmup="1s"), 10_000)) == (8, 20)
    assert seconds(at_rate(workload(warmup="1s"), 1e6)) == (8, 17)


def test_the_row_of_a_capacity() -> None:
    """PASS with the rate as its bound, FAIL with the limit that does not hold, ERROR without."""
    own = traffic()
    good = at_capacity(replace(own, at_capacity=traffic()), Rate(20))
    assert (good.status, good.requirement, good.result, good.bound) == (
        Status.PASS,
        "every limit at 20/s",
        "all 4 hold",
        20,
    )
    bad = at_capacity(replace(own, at_capacity=traffic(samples=SLOW)), Rate(20))
    assert (bad.status, bad.bound) == (Status.FAIL, None)
    assert bad.result.startswith("TTFT p50 ≥ 8")
    assert bad.evidence["limits"]["Errors"]["status"] == "PASS"
    none = at_capacity(replace(own, interrupted="the server died"), Rate(20))
    assert (none.status, none.result) == (Status.ERROR, "the server died")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What takes 8 s takes half a second, where a server is asked."""
    if "standin" in request.fixturenames:
        monkeypatch.setattr(trial, "LEAST_SECONDS", 0.5)
        monkeypatch.setattr(runner, "_FIRST_LOOK_SECONDS", 0.5)


def sent(rate: str, **require: Any) -> Workload:
    return workload(rate=rate, output_tokens=2, max_duration="20s", require=require)


def target(standin: Standin) -> Target:
    return Target(endpoint=Endpoint(standin.url), model=MODEL, vocab=VOCAB)


# Two seats of 20 ms: 100 requests per second.
SEATS = {"ttft_ms": 19, "tpot_ms": 1, "max_num_seqs": 2}


def test_a_trial_is_over_with_the_first_failure(standin: Standin) -> None:
    """The p99 that would take hundreds of requests more is not waited for."""
    standin.configure(ttft_ms=300)
    one = sent("40/s", ttft={"p50": "100ms"}, e2el={"p99": "5s"})
    found = holds(run_trial(at_rate(one, 40), BUDGET, target(standin)))
    assert found.status is Status.FAIL
    assert found.judgements["E2EL p99"].status is Status.INCONCLUSIVE
    assert found.seconds < 9


def test_a_run_answers_the_capacity_that_is_required(standin: Standin) -> None:
    """The workload is run at its own rate first, and then at that."""
    standin.configure(**SEATS)
    one = sent("50/s", ttft={"p50": "2s"}, capacity="250/s")
    spec = Spec.model_validate(
        {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "workloads": []}
    ).model_copy(update={"workloads": (one,)})
    found = run_workloads(spec, target(standin))
    own, tried = found["w"], found["w"].at_capacity
    assert tried is not None
    assert own.workload == one
    assert tried.workload == at_rate(one, 250)
    row = at_capacity(own, Rate(250))
    assert (row.status, row.result[:8]) == (Status.FAIL, "Keeps up")
    assert found.seconds == own.end - own.start + tried.end - tried.start
    assert found.to_json()["w"]["at_capacity"]["offered_rate"] == pytest.approx(250, rel=0.2)


def test_a_server_that_only_fails_is_not_asked_for_its_capacity(standin: Standin) -> None:
    """What interrupts the workload's own run is the reason why there is no answer."""
    standin.configure(faults=[Fault("http_500")])
    one = sent("300/s", concurrent_sequences=10_000, errors="1%", capacity="400/s")
    spec = Spec.model_validate(
        {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "workloads": []}
    ).model_copy(update={"workloads": (one,)})
    found = run_workloads(spec, target(standin))["w"]
    assert found.at_capacity is None
    row = at_capacity(found, Rate(400))
    assert (row.status, row.result[:14]) == (Status.ERROR, "50 requests in")
