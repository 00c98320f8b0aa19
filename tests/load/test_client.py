"""The client against a server with every fault there is."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import socket
import time
from statistics import median

import pytest
import uvloop

from pytest_llmdeploy.load import client
from pytest_llmdeploy.load.client import Client
from pytest_llmdeploy.load.prompts import Prompts
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.serving.process import free_port
from tests.load.loops import Run
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin
from tests.standin.settings import FaultKind


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both event loops, for their transports differ."""
    chosen: Run = request.param
    return chosen


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.3)


async def send(
    url: str, *, count: int = 1, tokens: int = 8, api_key: str | None = None
) -> list[Sample]:
    """Requests, one after the other."""
    source = map(
        Prompts(workload(output_tokens=tokens), MODEL, VOCAB, nonce=0).at, itertools.count()
    )
    async with asyncio.timeout(10), Client(Endpoint(url, api_key), patience=0.3) as sender:
        return [await sender.send(next(source), time.perf_counter()) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "outcome", "detail"),
    [
        ("http_400", Outcome.HTTP_ERROR, 'HTTP 400 {"error": {"message": "Bad request'),
        ("http_429", Outcome.HTTP_ERROR, 'HTTP 429 {"error": {"message": "The user has sent too'),
        ("http_500", Outcome.HTTP_ERROR, 'HTTP 500 {"error": {"message": "EngineCore encountered'),
        ("http_503", Outcome.HTTP_ERROR, 'HTTP 503 {"error": {"message": "The server cannot'),
        ("redirect", Outcome.REDIRECT, "HTTP 307 to /_standin/redirected"),
        ("stalled_stream", Outcome.STALLED, "nothing came for 0.3 s, after 4 tokens"),
        ("reset", Outcome.RESET, "[Errno 104] Connection reset by peer, after 4 tokens"),
        ("truncated", Outcome.TRUNCATED, "the stream ended after 4 tokens"),
        ("die", Outcome.TRUNCATED, "the connection was closed after 4 tokens"),
        ("empty_200", Outcome.EMPTY, "the answer has no body"),
        ("malformed_json", Outcome.MALFORMED, 'Input data was truncated: {"id":"cmpl-'),
        ("endless_headers", Outcome.HEADERS, "no end of the headers within 0.3 s"),
        ("sse_error", Outcome.SERVER_ERROR, '{"message":"EngineCore encountered an issue.'),
        ("abort_finish", Outcome.ABORTED, "finish_reason 'abort'"),
        ("wrong_count", Outcome.WRONG_COUNT, "7 tokens instead of 8"),
        ("huge_line", Outcome.OVERSIZED, "an event of more than 262,144 bytes"),
    ],
)
def test_every_fault_has_its_outcome(
    run: Run, request: pytest.FixtureRequest, kind: FaultKind, outcome: Outcome, detail: str
) -> None:
    """Within a second, and infinitely slow whatever came of the stream before."""
    if kind == "die":
        with Standin(faults=[Fault(kind)]) as mortal:
            (sample,) = run(send(mortal.url))
            mortal.wait()
            (alone,) = run(send(mortal.url))
        assert alone.outcome is Outcome.CONNECTION
    else:
        standin: Standin = request.getfixturevalue("standin")
        standin.configure(faults=[Fault(kind)])
        (sample,) = run(send(standin.url))
    assert sample.ended - sample.sent < 1
    assert sample.outcome is outcome
    assert sample.detail.startswith(detail)
    assert len(sample.detail) < 400
    assert {sample.ttft, sample.tpot, sample.e2el, sample.stall} == {math.inf}


@pytest.mark.parametrize("kind", ["reset", "truncated", "sse_error", "http_500"])
def test_a_fault_does_not_touch_the_requests_around_it(
    run: Run, standin: Standin, kind: FaultKind
) -> None:
    """Which ones fail is the server's choice alone, though connections are shared."""
    standin.configure(faults=[Fault(kind, fraction=0.4)], seed=3)
    samples = run(send(standin.url, count=12))
    struck = [request["fault"] is not None for request in standin.requests()]
    assert [not sample.is_ok for sample in samples] == struck
    assert any(struck)
    assert not all(struck)


def test_a_closed_port(run: Run) -> None:
    """Nobody there is a failed connection, with the reason of the system."""
    (sample,) = run(send(f"http://127.0.0.1:{free_port()}"))
    assert sample.outcome is Outcome.CONNECTION
    assert "111" in sample.detail  # ECONNREFUSED
    assert sample.ttft == math.inf


def test_a_port_that_does_not_accept(run: Run) -> None:
    """A server too busy to take connections is given up after a while."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        # The kernel takes one connection into the backlog, and drops what asks for another.
        with socket.create_connection(("127.0.0.1", port)):
            (sample,) = run(send(f"http://127.0.0.1:{port}"))
    assert (sample.outcome, sample.detail) == (Outcome.CONNECT_TIMEOUT, "none within 0.3 s")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_a_url_that_is_none(url: str) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(ValueError, match="neither http:// nor https://"):
        Client(Endpoint(url))


def test_a_redirect_is_not_followed(run: Run, standin: Standin) -> None:
    """What another address serves is not what this one does."""
    standin.configure(faults=[Fault("redirect")])
    run(send(standin.url))
    assert [request["path"] for request in standin.requests()] == ["/v1/completions"]


def test_what_is_sent(run: Run, standin: Standin) -> None:
    """The key goes along; nothing is compressed, for that would gather tokens before they leave."""
    standin.configure(api_key="s3%ret")
    (sample,) = run(send(standin.url, api_key="s3%ret"))
    (request,) = standin.requests()
    assert sample.is_ok
    assert request["path"] == "/v1/completions"
    assert request["body"]["max_tokens"] == 8
    assert request["headers"] == {
        "host": standin.url.removeprefix("http://"),
        "authorization": "Bearer s3%ret",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "content-length": request["headers"]["content-length"],
    }


@pytest.mark.parametrize("ttft_ms", [60_000, 1], ids=["before tokens", "between tokens"])
def test_a_cancelled_request_is_unfinished(run: Run, standin: Standin, ttft_ms: float) -> None:
    """What is broken off at the end of a run is counted, and as infinitely slow."""
    standin.configure(ttft_ms=ttft_ms, tpot_ms=200)

    async def cancelled() -> Sample:
        source = map(Prompts(workload(), MODEL, VOCAB, nonce=0).at, itertools.count())
        async with Client(Endpoint(standin.url)) as sender:
            task = asyncio.create_task(sender.send(next(source), time.perf_counter()))
            await asyncio.wait({task}, timeout=0.1)
            task.cancel()
            return await task

    sample = run(cancelled())
    assert (sample.outcome, sample.ttft) == (Outcome.UNFINISHED, math.inf)


@pytest.mark.parametrize("chunk_tokens", [1, 4])
def test_times_are_the_servers(run: Run, standin: Standin, chunk_tokens: int) -> None:
    """Scripted times come back within milliseconds, per token and not per chunk."""
    standin.configure(ttft_ms=40, tpot_ms=5, chunk_tokens=chunk_tokens)
    samples = run(send(standin.url, count=8, tokens=9))
    # A chunk leaves when its last token is there. What a busy machine adds, it adds on top: the
    # quickest request shows what the client itself is worth.
    first = 40 + 5 * (chunk_tokens - 1)
    assert min(sample.ttft for sample in samples) == pytest.approx(first + 3, abs=4)
    assert median(sample.tpot or 0 for sample in samples) == pytest.approx(5, abs=2)
    assert min(sample.e2el for sample in samples) == pytest.approx(40 + 40 + 3, abs=5)
    assert all(sum(count for _, count in sample.stamps) == 9 for sample in samples)


def test_requests_leave_nothing_for_the_collector(run: Run, standin: Standin) -> None:
    """There is no garbage collection while times are taken: what a request needs goes with it."""

    async def garbage() -> int:
        source = map(
            Prompts(workload(output_tokens=8), MODEL, VOCAB, nonce=0).at, itertools.count()
        )
        async with Client(Endpoint(standin.url)) as sender:
            await sender.send(next(source), 0)
            gc.collect()
            gc.disable()
            for _ in range(20):
                await sender.send(next(source), 0)
            return gc.collect()

    try:
        assert run(garbage()) < 20
    finally:
        gc.enable()
