"""Runs of whole workloads against the stand-in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llmdeploy.load import Outcome, WorkloadTraffic, runner
from pytest_llmdeploy.load.arrivals import arrivals
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Spec, Workload
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin
from tests.standin.settings import FaultKind

WARMUP = 8
SPEC = Spec.model_validate(
    {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "workloads": []}
)


def run(
    standin: Standin,
    sent: Workload,
    death: Callable[[], str] | None = None,
    stopped: Callable[[], str] = lambda: "",
) -> WorkloadTraffic:
    spec = SPEC.model_copy(update={"workloads": (sent,)})
    target = Target(
        endpoint=Endpoint(standin.url), model=MODEL, vocab=VOCAB, death=death, stopped=stopped
    )
    return run_workloads(spec, target)[sent]


def endless(**overrides: Any) -> Workload:
    """A workload whose requirement is never decided: it runs for its whole duration."""
    require = {"concurrent_sequences": 10_000}
    return workload(**{"max_duration": "1s", "require": require, **overrides})


def test_an_open_loop_sends_on_schedule(standin: Standin) -> None:
    """A server that serves one at a time, slowly, does not slow down what is sent to it."""
    standin.configure(ttft_ms=30, tpot_ms=1, max_num_seqs=1)
    sent = endless(rate="60/s", max_duration="1s")
    traffic = run(standin, sent)
    offsets = [sample.due - traffic.start for sample in traffic.samples]
    assert offsets == pytest.approx(list(arrivals(sent)), abs=1e-6)
    lateness = sorted(sample.sent - sample.due for sample in traffic.samples)
    assert lateness[0] >= 0
    assert lateness[len(lateness) // 2] < 0.005
    assert traffic.outcomes == {"ok": len(offsets)}
    # Waiting for the one seat counts: the last ones wait for all before them.
    assert traffic.samples[-1].ttft > 300


def test_a_closed_loop_keeps_its_number_in_flight(standin: Standin) -> None:
    """Never more than the concurrency, and hardly ever less."""
    standin.configure(ttft_ms=40, tpot_ms=10)
    traffic = run(standin, endless(concurrency=5, max_duration="3s"))
    edges = [(s.sent, 1) for s in traffic.samples] + [(s.ended, -1) for s in traffic.samples]
    flying, peak = 0, 0
    for _, change in sorted(edges):
        flying += change
        peak = max(peak, flying)
    assert peak == traffic.running_peak.value == 5
    busy = sum(min(s.ended, traffic.end) - s.sent for s in traffic.samples)
    assert busy / (traffic.end - traffic.start) > 0.7 * 5


def test_it_stops_when_all_is_decided(standin: Standin) -> None:
    """Not before the requirement is decided, and not much after."""
    sent = workload(rate="200/s", max_duration="30s", require={"ttft": {"p50": "2s"}})
    traffic = run(standin, sent)
    assert 0 < traffic.end - traffic.start < 15
    assert (traffic.interrupted, set(traffic.outcomes)) == ("", {"ok"})
    assert len(traffic.ttft.values) >= 100


def test_a_failing_requirement_stops_it_too(standin: Standin) -> None:
    """What fails for sure need not be watched to the end."""
    standin.configure(ttft_ms=50)
    sent = workload(rate="100/s", max_duration="30s", require={"ttft": {"p50": "1ms"}})
    traffic = run(standin, sent)
    assert traffic.end - traffic.start < 3


def test_warm_up_is_not_measured(standin: Standin) -> None:
    """Neither the first requests nor those due in the warm-up count, nor their preemptions."""
    standin.configure(preemptions_per_request=1)
    sent = endless(warmup="400ms")
    traffic = run(standin, sent)
    scheduled = len(arrivals(sent))
    assert len(standin.requests()) == WARMUP + scheduled
    in_window = [moment for moment in arrivals(sent) if moment >= 0.4]
    assert len(traffic.samples) == len(in_window) < scheduled
    assert min(sample.due for sample in traffic.samples) >= traffic.start
    assert traffic.preempted.value == scheduled


def test_a_long_page_of_metrics_is_read_whole(standin: Standin) -> None:
    """What many engines say comes in many parts, and all of them count."""
    standin.configure(engines=150, preemptions_per_request=1)
    sent = endless()
    traffic = run(standin, sent)
    assert traffic.preempted.value == len(arrivals(sent))


@pytest.mark.parametrize("kind", ["http_500", "reset", "huge_line"])
def test_metrics_that_fail_are_unread(standin: Standin, kind: FaultKind) -> None:
    """The traffic goes on; what was not read is no zero."""
    standin.configure(faults=[Fault(kind, path="/metrics")])
    traffic = run(standin, endless(rate="20/s", max_duration="500ms"))
    assert (traffic.preempted.value, bool(traffic.preempted.problem)) == (None, True)
    assert traffic.errors.entries["value"].value == 0


def test_a_death_interrupts(standin: Standin) -> None:
    """When the server is known to be dead, the run is over and says why."""
    began = time.monotonic()
    alive_until = began + 0.6
    died = "the server died: out of memory"
    sent = endless(max_duration="30s")
    traffic = run(standin, sent, lambda: died if time.monotonic() > alive_until else "")
    assert time.monotonic() - began < 10
    assert traffic.interrupted == died
    assert traffic.ttft.problem == died


def test_a_death_that_decided_everything_is_asked_for(standin: Standin) -> None:
    """The first failure fails the census and ends the run; what the server died of is still told,
    though it takes a while to die.
    """
    standin.configure(faults=[Fault("http_500")])
    died = "the server died: a worker process died"
    asked: list[float] = []

    def death() -> str:
        if len(standin.requests()) > WARMUP:
            asked.append(time.monotonic())
        return died if asked and asked[-1] > asked[0] + 1 else ""

    sent = workload(require={"errors": "0%"}, max_duration="30s")
    traffic = run(standin, sent, death)
    assert traffic.interrupted == died
    assert traffic.errors.entries["value"].value == 1


@pytest.mark.parametrize(
    ("after", "asked"),
    [
        (WARMUP + 10, {"rate": "20/s"}),
        (WARMUP + 10, {"concurrency": 4}),
        (WARMUP + 10, {"rate": "20/s", "require": {"errors": "0%"}}),
        (0, {"rate": "20/s"}),
    ],
    ids=["open", "closed", "decided", "warm-up"],
)
def test_a_hang_interrupts(
    standin: Standin, asked: dict[str, Any], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Healthy, and no request gets a token any more: that is over, though new ones get headers."""
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 1.5)

    def hang() -> str:
        if len(standin.requests()) >= after:
            standin.configure(ttft_ms=600_000)
        return ""

    hang()
    began = time.monotonic()
    traffic = run(standin, endless(max_duration="5min", stall_timeout="1s", **asked), hang)
    assert time.monotonic() - began < 8
    assert re.fullmatch(
        r"the server hangs: no token for \d s while /health answers 200", traffic.interrupted
    )
    assert traffic.ttft.problem == traffic.interrupted
    assert traffic.is_final


def test_a_server_that_says_nothing_any_more(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its health nor its metrics are waited for as long as those of one that serves."""
    monkeypatch.setattr(runner, "_ANSWER_SECONDS", 0.5)

    def hang() -> str:
        if len(standin.requests()) >= WARMUP + 10:
            silent = [{"kind": "silent", "path": path} for path in ("/health", "/metrics")]
            standin.configure(ttft_ms=600_000, faults=silent)
        return ""

    began = time.monotonic()
    traffic = run(standin, endless(max_duration="5min", stall_timeout="1s", rate="20/s"), hang)
    assert re.fullmatch(
        r"the server hangs: no token for \d s and /health does not answer 200", traffic.interrupted
    )
    assert time.monotonic() - began < 1 + 2 * runner._ANSWER_SECONDS + 3


def test_a_stopped_engine_is_a_hang(standin: Standin) -> None:
    """Others are answered all the while: what a stopped process has is never answered."""
    standin.configure(faults=[{"kind": "silent", "fraction": 0.3, "after": WARMUP}])
    sent = endless(max_duration="5min", stall_timeout="1s", rate="20/s")
    began = time.monotonic()
    traffic = run(standin, sent, stopped=lambda: "VLLM::EngineCore_DP1 (pid 7) is stopped")
    assert time.monotonic() - began < 8
    assert traffic.interrupted == (
        "the server hangs: no token for 1 s for some requests: "
        "VLLM::EngineCore_DP1 (pid 7) is stopped"
    )


def test_who_waits_for_a_seat_is_no_hang(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that nothing comes for is given up; another one is being answered all the while."""
    monkeypatch.setattr(runner, "_WARMUP_REQUESTS", 1)
    standin.configure(max_num_seqs=1, tpot_ms=100)
    traffic = run(standin, endless(concurrency=2, output_tokens=16, stall_timeout="700ms"))
    assert traffic.outcomes["stalled"] >= 1
    assert (traffic.interrupted, traffic.outcomes["ok"]) == ("", 1)


def test_nothing_is_sent_to_a_dead_server(standin: Standin) -> None:
    """The workloads that would follow say why they were not sent."""
    died = "the server died: out of memory"
    workloads = [endless(name=name, max_duration="30s") for name in ("first", "second")]
    spec = SPEC.model_copy(update={"workloads": tuple(workloads)})
    target = Target(endpoint=Endpoint(standin.url), model=MODEL, vocab=VOCAB, death=lambda: died)
    traffic = run_workloads(spec, target)
    assert [one.interrupted for one in traffic.values()] == [died, died]
    assert len(traffic["second"].samples) == 0
    assert len(standin.requests()) < 2 * WARMUP


def test_a_server_that_died_before() -> None:
    """What it died of is told, and not what failed for that reason."""
    with Standin() as other:
        other.kill()
        traffic = run(other, endless(), lambda: "the server died: out of memory")
    assert traffic.interrupted == "the server died: out of memory"


def test_nothing_but_failures_interrupts(standin: Standin) -> None:
    """A run against a server that only fails is given up, with the last reason."""
    standin.configure(faults=[Fault("http_500")])
    traffic = run(standin, endless(rate="300/s", max_duration="30s"))
    assert traffic.interrupted.startswith("50 requests in a row failed: HTTP 500")
    assert traffic.errors.entries["value"].value == 1


def test_many_failures_with_successes_between_do_not(standin: Standin) -> None:
    """A server that answers now and then is measured to the end."""
    standin.configure(faults=[Fault("http_500", fraction=0.8)])
    traffic = run(standin, endless(rate="300/s"))
    assert traffic.interrupted == ""
    assert traffic.outcomes["http error"] > 150
    assert sum(traffic.outcomes.values()) == len(traffic.samples)


def test_a_garbled_stream_is_a_failed_request(standin: Standin) -> None:
    """Requests do not vanish from the census, whatever they end with."""
    standin.configure(faults=[Fault("malformed_json", fraction=0.5)])
    sent = endless()
    traffic = run(standin, sent)
    assert len(traffic.samples) == len(arrivals(sent))
    assert set(traffic.outcomes) == {"ok", "malformed"}


@pytest.mark.parametrize("loop", [{"rate": "40/s"}, {"concurrency": 4}], ids=["open", "closed"])
def test_what_is_in_flight_at_the_end_may_finish(standin: Standin, loop: dict[str, Any]) -> None:
    """The last requests end after the window, and are measured like all others."""
    standin.configure(ttft_ms=300)
    traffic = run(standin, endless(max_duration="500ms", **loop))
    assert set(traffic.outcomes) == {"ok"}
    assert max(sample.ended for sample in traffic.samples) > traffic.end
    assert traffic.achieved_rate < traffic.offered_rate


@pytest.mark.parametrize("loop", [{"rate": "40/s"}, {"concurrency": 4}], ids=["open", "closed"])
def test_what_never_ends_is_unfinished(
    standin: Standin, loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for the last requests is bounded, and each of them counts as a failure."""
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 0.2)
    standin.configure(ttft_ms=60_000)
    sent = endless(max_duration="1500ms", **loop)
    traffic = run(standin, sent)
    expected = len(arrivals(sent)) or 4
    assert traffic.outcomes == {str(Outcome.UNFINISHED): expected}
    assert traffic.errors.entries["value"].value == 1


def test_what_is_given_up_at_the_end_does_not_interrupt(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overloaded server that leaves many requests unfinished is slow, and was measured."""
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 0.2)
    standin.configure(ttft_ms=60_000)
    traffic = run(standin, endless(rate="300/s", max_duration="400ms"))
    assert len(traffic.samples) > 50
    assert traffic.interrupted == ""


def test_falling_behind_is_seen(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of ten requests per second does not keep up with forty."""
    monkeypatch.setattr(runner, "_FIRST_LOOK_SECONDS", 0.6)
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 0.2)
    standin.configure(ttft_ms=100, tpot_ms=0, max_num_seqs=1)
    sent = workload(rate="40/s", max_duration="2s", require={"keeps_up": True})
    traffic = run(standin, sent)
    assert traffic.keeps_up().status == "FAIL"
