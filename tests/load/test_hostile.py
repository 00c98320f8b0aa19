"""Dead and hostile servers: whatever share of the requests they spoil, no gate lets them pass.

All faults at all shares go through one run, as one workload each, so that every workload also shows
that the faults before it left the client unharmed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import comb
from typing import get_args

import pytest

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.load import Outcome, Traffic, WorkloadTraffic, runner
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.probes import endpoint
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.serving.process import free_port
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.units import Duration
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin
from tests.standin.settings import FaultKind

# Far above what the stand-in needs on the busiest machine: only faults exceed it.
LIMIT_MS = 10_000
REQUIRE = {"ttft": {"p50": "10s", "p99": "10s"}, "errors": "0%"}
RATE = 350
# Servers that send as much as they can are asked less often, lest this machine be what is slow.
RATES: dict[FaultKind, int] = {"huge_line": 120, "endless_body": 200}
PATIENCE = 0.4
WARMUP = 8
# The draws of this seed strike at least once among the first 100 requests of every workload.
SEED = 3162

HTTP = Outcome.HTTP_ERROR
FAULTS: dict[FaultKind, tuple[Outcome, str]] = {
    "http_400": (HTTP, "HTTP 400 "),
    "http_429": (HTTP, "HTTP 429 "),
    "http_500": (HTTP, "HTTP 500 "),
    "http_503": (HTTP, "HTTP 503 "),
    "redirect": (Outcome.REDIRECT, "HTTP 307 to /_standin/redirected"),
    "empty_200": (Outcome.EMPTY, "the answer has no body"),
    "reset": (Outcome.RESET, "[Errno 104] Connection reset by peer, after 2 tokens"),
    "truncated": (Outcome.TRUNCATED, "the stream ended after 2 tokens"),
    "malformed_json": (Outcome.MALFORMED, "Input data was truncated"),
    "sse_error": (Outcome.SERVER_ERROR, '{"message":"EngineCore encountered an issue.'),
    "abort_finish": (Outcome.ABORTED, "finish_reason 'abort'"),
    "wrong_count": (Outcome.WRONG_COUNT, "3 tokens instead of 4"),
    "garbage": (Outcome.FRAMING, ""),
    "endless_headers": (Outcome.HEADERS, "no end of the headers within 0.4 s"),
    "endless_body": (Outcome.OVERSIZED, "the answer is larger than 1,048,576 bytes"),
    "huge_line": (Outcome.OVERSIZED, "an event of more than 262,144 bytes"),
    "stalled_stream": (Outcome.STALLED, "nothing came for 0.4 s, after 2 tokens"),
    "silent": (Outcome.STALLED, "nothing came for 0.4 s, after no headers"),
}
# Where every request ends like this, the server hangs.
HANGS = {"stalled_stream", "silent"}
SHARES = (0.01, 0.1, 1.0)
CASES = [(kind, share) for kind in FAULTS for share in SHARES]
# Where every request fails, few show it.
REQUESTS = {0.01: 120, 0.1: 70, 1.0: 40}
# Each group is one run, so that two processes can share the work.
GROUPS = [list(FAULTS)[start::3] for start in range(3)]
# Each workload has prompts of a length of its own: by it the stand-in knows which fault is meant.
PROMPT = {case: 16 + number for number, case in enumerate(CASES)}


def name(kind: FaultKind, share: float) -> str:
    return f"{kind}.{share:g}"


def hostile(kind: FaultKind, share: float) -> Workload:
    """The traffic that meets this fault; it is given up sooner than its limits allow."""
    rate = RATES.get(kind, RATE)
    seconds = REQUESTS[share] / rate
    return workload(
        name=name(kind, share),
        input_tokens=PROMPT[kind, share],
        rate=f"{rate}/s",
        max_duration=f"{seconds}s",
        require=REQUIRE,
    ).model_copy(update={"stall_timeout": Duration(PATIENCE * 1000)})


def run(url: str, sent: Sequence[Workload], death: Callable[[], str] | None = None) -> Traffic:
    plain = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "workloads": []}
    spec = Spec.model_validate(plain).model_copy(update={"workloads": tuple(sent)})
    target = Target(endpoint=Endpoint(url), model=MODEL, vocab=VOCAB, death=death)
    return run_workloads(spec, target)


def judged(traffic: WorkloadTraffic) -> dict[str, Judgement]:
    """The rows of a workload's requirements, as the checks make them."""
    return {
        "p50": traffic.ttft.at("p50").at_most(LIMIT_MS),
        "p99": traffic.ttft.at("p99").at_most(LIMIT_MS),
        "errors": traffic.errors.at_most(0),
    }


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client, and whoever reads /metrics, give up in a fraction of a second."""
    monkeypatch.setattr(runner, "_ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 1.0)
    monkeypatch.setattr(runner, "_LEAD_SECONDS", 0.03)
    monkeypatch.setattr(endpoint, "_ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(endpoint, "_CONNECT_SECONDS", PATIENCE)


def test_every_fault_is_here() -> None:
    """All that the stand-in can do to a completion; death has a test of its own."""
    assert set(FAULTS) == set(get_args(FaultKind)) - {"die", "health_503"}


@pytest.mark.parametrize("kinds", GROUPS, ids=["first", "second", "third"])
def test_no_fault_passes(kinds: Sequence[FaultKind]) -> None:
    """At 1 %, 10 % and 100 % of the requests: each is counted as what it is, and no row is green
    that should not be. The run comes to its end, whatever the server does.
    """
    cases = [(kind, share) for kind in kinds for share in SHARES]
    faults = [Fault(kind, fraction=s, prompt_tokens=PROMPT[kind, s]) for kind, s in cases]
    began = time.monotonic()
    with Standin(faults=faults, seed=SEED, max_num_seqs=4096) as standin:
        traffic = run(standin.url, [hostile(*case) for case in cases])
    assert time.monotonic() - began < 60
    for kind, share in cases:
        served = traffic[name(kind, share)]
        rows = judged(served)
        if share == 1 and kind in HANGS:
            assert served.interrupted.startswith("the server hangs: no token for ")
            assert Status.PASS not in {row.status for row in rows.values()}
            continue
        assert_counted(served, kind)
        assert rows["errors"].status is Status.FAIL
        if share > 0.01:
            assert rows["p99"].status is not Status.PASS
        else:
            assert_allowed(served, rows["p99"].status)
        if share == 1:
            assert Outcome.OK not in served.outcomes
            assert rows["p50"].status is not Status.PASS


def assert_counted(traffic: WorkloadTraffic, kind: FaultKind) -> None:
    """Under its own outcome, with an example in the report; no request is lost."""
    outcome, detail = FAULTS[kind]
    assert traffic.outcomes[outcome] >= 1, (kind, traffic.outcomes)
    assert sum(traffic.outcomes.values()) == len(traffic.samples)
    example = traffic.to_json()["failures"][outcome]
    assert example.startswith(detail)
    assert len(example) < 400


def assert_allowed(traffic: WorkloadTraffic, status: Status) -> None:
    """At one percent, "p99 ≤ limit" is neither true nor false by much, so that no answer is asked
    for. But a PASS would have to say with 95 % that fewer than 1 % fail, and fixed-n binomial
    statistics, which see the data once and are bolder, would have to say so, too.
    """
    n, failed = len(traffic.samples), sum(not sample.is_ok for sample in traffic.samples)
    as_few = sum(comb(n, k) * 0.01**k * 0.99 ** (n - k) for k in range(failed + 1))
    assert status is not Status.PASS or as_few <= 0.05


HEALTHY = workload(rate="200/s", max_duration="8s", require=REQUIRE)


def assert_refused(traffic: WorkloadTraffic, *outcomes: Outcome) -> None:
    """It broke off early, with examples of these outcomes, and no row passes."""
    assert traffic.interrupted
    assert traffic.end - traffic.start < 4
    assert set(outcomes) & set(traffic.to_json()["failures"])
    assert judged(traffic)["errors"].status is Status.FAIL
    assert judged(traffic)["p99"].status is not Status.PASS


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_server_that_dies_of_a_request(share: float) -> None:
    """Every request after that fails, and the run is given up."""
    with Standin(faults=[Fault("die", fraction=share)], seed=SEED) as standin:
        traffic = run(standin.url, [HEALTHY])["w"]
    assert_refused(traffic, Outcome.CONNECTION)


@contextlib.contextmanager
def after(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Does something to the server in the middle of a run."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_a_server_that_is_killed() -> None:
    """What is known of its death is the reason that the rows give."""
    killed = threading.Event()
    with Standin() as standin:

        def kill() -> None:
            standin.kill()
            killed.set()

        def death() -> str:
            return "the server was killed" if killed.is_set() else ""

        with after(2.0, kill):
            traffic = run(standin.url, [HEALTHY], death)["w"]
    assert_refused(traffic, Outcome.CONNECTION, Outcome.TRUNCATED, Outcome.RESET)
    assert traffic.interrupted == "the server was killed"


def test_a_server_that_hangs() -> None:
    """It takes connections, and never answers again; neither does its /metrics."""
    with Standin() as standin:
        try:
            with after(2.0, lambda: os.kill(standin.pid, signal.SIGSTOP)):
                impatient = {"stall_timeout": Duration(PATIENCE * 1000)}
                traffic = run(standin.url, [HEALTHY.model_copy(update=impatient)])["w"]
        finally:
            os.kill(standin.pid, signal.SIGCONT)
    assert_refused(traffic, Outcome.STALLED)


def test_nobody_there() -> None:
    """A port on which no one listens, from the first request on."""
    traffic = run(f"http://127.0.0.1:{free_port()}", [HEALTHY])["w"]
    assert_refused(traffic, Outcome.CONNECTION)
