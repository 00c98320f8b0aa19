"""The client against a server with every fault there is."""

from __future__ import annotations

import asyncio
import math
import time
from statistics import median

import pytest

from pytest_llmdeploy.load import client
from pytest_llmdeploy.load.client import Client, new_session
from pytest_llmdeploy.load.prompts import prompts
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.serving.process import free_port
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin
from tests.standin.settings import FaultKind


def send(url: str, *, count: int = 1, tokens: int = 8, api_key: str | None = None) -> list[Sample]:
    """Requests, one after the other."""

    async def run() -> list[Sample]:
        source = prompts(workload(output_tokens=tokens), MODEL, VOCAB)
        async with new_session(Endpoint(url, api_key)) as session:
            sender = Client(session, f"{url}/v1/completions")
            return [await sender.send(next(source), time.perf_counter()) for _ in range(count)]

    return asyncio.run(asyncio.wait_for(run(), 10))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_SECONDS", 0.3)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("http_400", Outcome.HTTP_ERROR),
        ("http_429", Outcome.HTTP_ERROR),
        ("http_500", Outcome.HTTP_ERROR),
        ("http_503", Outcome.HTTP_ERROR),
        ("redirect", Outcome.HTTP_ERROR),
        ("stalled_stream", Outcome.STALLED),
        ("reset", Outcome.TRUNCATED),
        ("truncated", Outcome.TRUNCATED),
        ("empty_200", Outcome.TRUNCATED),
        ("malformed_json", Outcome.MALFORMED),
        ("endless_headers", Outcome.MALFORMED),
        ("sse_error", Outcome.SERVER_ERROR),
        ("abort_finish", Outcome.ABORTED),
        ("wrong_count", Outcome.WRONG_COUNT),
        ("huge_line", Outcome.OVERSIZED),
    ],
)
def test_every_fault_has_its_outcome(standin: Standin, kind: FaultKind, outcome: Outcome) -> None:
    """Within seconds, and infinitely slow whatever came of the stream before."""
    standin.configure(faults=[Fault(kind)])
    began = time.monotonic()
    (sample,) = send(standin.url)
    assert time.monotonic() - began < 8
    assert (sample.outcome, bool(sample.detail)) == (outcome, True)
    latencies = {sample.ttft, sample.tpot, sample.e2el, sample.stall}
    assert latencies == {math.inf}


def test_a_server_that_dies() -> None:
    """The request that it dies over is cut off, and the next finds nobody."""
    with Standin(faults=[Fault("die")]) as standin:
        samples = send(standin.url, count=2)
    assert [sample.outcome for sample in samples] == [Outcome.TRUNCATED, Outcome.CONNECTION]


def test_a_closed_port() -> None:
    """Nobody there is a failed connection."""
    (sample,) = send(f"http://127.0.0.1:{free_port()}")
    assert sample.outcome is Outcome.CONNECTION
    assert sample.ttft == math.inf


def test_a_redirect_is_not_followed(standin: Standin) -> None:
    """What another address serves is not what this one does."""
    standin.configure(faults=[Fault("redirect")])
    send(standin.url)
    assert [request["path"] for request in standin.requests()] == ["/v1/completions"]


def test_what_is_sent(standin: Standin) -> None:
    """The key goes along; nothing is compressed, for that would gather tokens before they leave."""
    standin.configure(api_key="s3cret")
    (sample,) = send(standin.url, api_key="s3cret")
    (request,) = standin.requests()
    assert sample.is_ok
    assert request["headers"]["accept-encoding"] == "identity"


def test_a_cancelled_request_is_unfinished(standin: Standin) -> None:
    """What is broken off at the end of a run is counted, and as infinitely slow."""
    standin.configure(ttft_ms=60_000)

    async def run() -> Sample:
        source = prompts(workload(), MODEL, VOCAB)
        async with new_session(Endpoint(standin.url)) as session:
            sender = Client(session, f"{standin.url}/v1/completions")
            task = asyncio.create_task(sender.send(next(source), time.perf_counter()))
            await asyncio.wait({task}, timeout=0.1)
            task.cancel()
            return await task

    sample = asyncio.run(run())
    assert (sample.outcome, sample.ttft) == (Outcome.UNFINISHED, math.inf)


@pytest.mark.parametrize("chunk_tokens", [1, 4])
def test_times_are_the_servers(standin: Standin, chunk_tokens: int) -> None:
    """Scripted times come back within milliseconds, per token and not per chunk."""
    standin.configure(ttft_ms=40, tpot_ms=5, chunk_tokens=chunk_tokens)
    samples = send(standin.url, count=15, tokens=9)
    # A chunk leaves when its last token is there. What a busy machine adds, it adds on top: the
    # quickest request shows what the client itself is worth.
    first = 40 + 5 * (chunk_tokens - 1)
    assert min(sample.ttft for sample in samples) == pytest.approx(first + 3, abs=4)
    assert median(sample.tpot or 0 for sample in samples) == pytest.approx(5, abs=2)
    assert min(sample.e2el for sample in samples) == pytest.approx(40 + 40 + 3, abs=5)
    assert all(sum(count for _, count in sample.stamps) == 9 for sample in samples)


ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    b'data: {"choices": [{"token_ids": [1], "finish_reason": "length"}]}\n\n'
    b"data: [DONE]\n\n"
)
ANSWER %= len(ANSWER.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("answers", "connections", "outcomes"),
    [(1, 2, [Outcome.OK, Outcome.OK]), (0, 2, [Outcome.CONNECTION, Outcome.CONNECTION])],
    ids=["kept open, then closed", "never answers"],
)
def test_a_connection_that_closes_as_it_is_used_again(
    answers: int, connections: int, outcomes: list[Outcome]
) -> None:
    """Only that is HTTP's own race, and the request is sent anew; a fresh connection that closes is
    the server's doing.
    """
    opened = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        for number in range(answers + 1):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
            if number < answers:
                writer.write(ANSWER)
        writer.close()

    async def run() -> list[Outcome]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source = prompts(workload(output_tokens=1), MODEL, VOCAB)
        async with server, new_session(Endpoint(url)) as session:
            sender = Client(session, url)
            sent = [await sender.send(next(source), time.perf_counter()) for _ in range(2)]
        return [sample.outcome for sample in sent]

    assert asyncio.run(asyncio.wait_for(run(), 10)) == outcomes
    assert len(opened) == connections
