"""Bytes as a server may send them, rightly and wrongly, and the connections that carry them."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import uvloop

from pytest_llmdeploy.load import pool
from pytest_llmdeploy.load.client import Client
from pytest_llmdeploy.load.prompts import Prompt
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from tests.load.loops import Handler, Run, serving, writing

TOKEN = b'data: {"choices": [{"token_ids": [1]}]}\n\n'
LAST = b'data: {"choices": [{"token_ids": [1], "finish_reason": "length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
BODY = TOKEN + LAST + DONE
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = OK + b"Content-Length: %d\r\n\r\n" % len(BODY)
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


PATIENCE = 0.2
STREAM = (CHUNKED, chunk(TOKEN), chunk(LAST), chunk(DONE), END)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both event loops, for their transports differ."""
    chosen: Run = request.param
    return chosen


async def answered(
    *answers: Handler, count: int = 1, pause: float = 0.0, tls: ssl.SSLContext | None = None
) -> tuple[list[Sample], list[int]]:
    """Requests for two tokens, one after the other; the connections on which they came."""
    async with asyncio.timeout(10), serving(*answers, tls=tls) as (url, asked):
        async with Client(Endpoint(url), patience=PATIENCE) as sender:
            samples = []
            for _ in range(count):
                samples.append(await sender.send(Prompt(b"{}", 1, 2), time.perf_counter()))
                await asyncio.sleep(pause)
        return samples, asked


SPLIT = b": looks like the end 0\r\n\r\n"
CRLF = [part.replace(b"\n", b"\r\n") for part in (TOKEN, LAST, DONE)]
RIGHT = {
    "chunked": STREAM,
    "at once": (b"".join(STREAM),),
    "byte by byte": tuple(bytes([byte]) for byte in b"".join(STREAM)),
    "the end in two": (*STREAM[:-1], END[:2], END[2:]),
    "the end in halves": (*STREAM[:-1], END[:4], END[4:]),
    "the end with trailers": (*STREAM[:-1], b"0\r\nServer-Timing: x\r\n\r\n"),
    "chunk extensions": (CHUNKED, b"%x;a=b\r\n%b\r\n" % (len(BODY), BODY), END),
    "one event in two chunks": (CHUNKED, chunk(BODY[:9]), chunk(BODY[9:]), END),
    "an end mark inside": (
        CHUNKED,
        b"%x\r\n" % len(SPLIT + b"\n\n") + SPLIT,
        b"\n\n\r\n",
        *STREAM[1:],
    ),
    "an end mark as a chunk": (CHUNKED, chunk(b": 0\r\n\r\n")[:-2], b"\r\n", *STREAM[1:]),
    "events that end in CRLF": (CHUNKED, *map(chunk, CRLF), END),
    "with its length": (SIZED, TOKEN, LAST, DONE),
    "with its length, at once": (SIZED + BODY,),
    "with its length, to be closed": (SIZED.replace(OK, OK + b"Connection: close\r\n"), BODY),
    "up to the close": (OK + b"\r\n", TOKEN, LAST, DONE),
    "after early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED, *STREAM[1:]),
    "after early hints, apart": (b"HTTP/1.1 103 Early Hints\r\n\r\n", *STREAM),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n", BODY),
}


@pytest.mark.parametrize("parts", RIGHT.values(), ids=RIGHT)
def test_http_in_every_shape(run: Run, parts: tuple[bytes, ...]) -> None:
    """The answer ends where HTTP says so, at once, and nowhere else."""
    pause = 0.0 if len(parts) > 20 else 0.005
    closes = "Transfer-Encoding" not in str(parts) and "Content-Length" not in str(parts)
    (sample,), _ = run(answered(writing(*parts, pause=pause, close=closes)))
    assert (sample.outcome, sample.detail) == (Outcome.OK, "")
    assert sum(count for _, count in sample.stamps) == 2
    assert sample.ended - sample.sent < 0.15  # it is not silence that ended it


WRONG = {
    "not HTTP": ((b"hello\r\n\r\n",), Outcome.FRAMING),
    "HTTP/2": ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), Outcome.FRAMING),
    "no chunk size": ((CHUNKED, b"xyz\r\n" + TOKEN + b"\r\n", END), Outcome.FRAMING),
    "a chunk longer than it says": ((CHUNKED, b"3\r\n" + TOKEN + b"\r\n", END), Outcome.FRAMING),
    "two lengths": ((OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",), Outcome.FRAMING),
    "a length and chunks": (
        (CHUNKED.replace(OK, OK + b"Content-Length: 3\r\n"), *STREAM[1:]),
        Outcome.FRAMING,
    ),
    "more than one answer": ((b"".join(STREAM) * 2,), Outcome.FRAMING),
    "another protocol": (
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
        Outcome.FRAMING,
    ),
    "half a header": ((OK + b"Content-Le",), Outcome.HEADERS),
    "a head of 65 KiB": ((OK + b"X-A: " + b"x" * 66_560,), Outcome.HEADERS),
    "an endless comment": ((CHUNKED, *[chunk(b":" * 99_999 + b"\n\n")] * 12), Outcome.OVERSIZED),
    "an endless line": ((CHUNKED, *[chunk(b":" * 99_999)] * 12), Outcome.OVERSIZED),
    "a length without bytes": ((SIZED,), Outcome.STALLED),
    "no end mark": (STREAM[:-1], Outcome.STALLED),
    "an error that never ends": (
        (b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\nengine died",),
        Outcome.HTTP_ERROR,
    ),
    "an error without end": (
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk(b"x" * 999)] * 9),
        Outcome.HTTP_ERROR,
    ),
    "no content": ((b"HTTP/1.1 204 No Content\r\n\r\n",), Outcome.HTTP_ERROR),
    "JSON, not a stream": ((OK + b"Content-Length: 2\r\n\r\n{}",), Outcome.TRUNCATED),
}


@pytest.mark.parametrize(("parts", "outcome"), WRONG.values(), ids=WRONG)
def test_wrong_bytes_have_their_outcome(
    run: Run, parts: tuple[bytes, ...], outcome: Outcome
) -> None:
    """Whether the server then waits or goes on, it is told in bounded time, and in words."""
    (sample,), _ = run(answered(writing(*parts)))
    assert sample.outcome is outcome
    assert sample.detail
    assert sample.ended - sample.sent < 0.5


CUT = {
    "within the head": ((OK,), Outcome.TRUNCATED),
    "after the head": ((CHUNKED,), Outcome.TRUNCATED),
    "after [DONE]": (STREAM[:-1], Outcome.TRUNCATED),
    "short of its length": ((SIZED, TOKEN), Outcome.TRUNCATED),
    "an error cut short": (
        (b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\nengine died",),
        Outcome.HTTP_ERROR,
    ),
    "up to the close, without [DONE]": ((OK + b"\r\n", TOKEN, LAST), Outcome.TRUNCATED),
    "up to the close, nothing": ((OK + b"\r\n",), Outcome.EMPTY),
    "without a word": ((), Outcome.CONNECTION),
}


@pytest.mark.parametrize(("parts", "outcome"), CUT.values(), ids=CUT)
def test_an_answer_cut_off(run: Run, parts: tuple[bytes, ...], outcome: Outcome) -> None:
    """A connection that closes too early is noticed at once."""
    (sample,), asked = run(answered(writing(*parts, close=True)))
    assert sample.outcome is outcome
    assert sample.detail
    assert sample.ended - sample.sent < 0.15
    assert asked == [1]


def test_connections_are_used_again(run: Run) -> None:
    """One after the other, requests need one connection."""
    samples, asked = run(answered(*[writing(*STREAM, pause=0)] * 5, count=5))
    assert {sample.outcome for sample in samples} == {Outcome.OK}
    assert asked == [1] * 5


NOT_AGAIN = {
    "said so": (SIZED.replace(OK, OK + b"Connection: close\r\n") + BODY,),
    "HTTP/1.0": (SIZED.replace(b"1.1", b"1.0") + BODY,),
    "bytes nobody asked for": (SIZED + BODY, b"HTTP/1.1 408 Request Timeout\r\n\r\n"),
}


@pytest.mark.parametrize("parts", NOT_AGAIN.values(), ids=NOT_AGAIN)
def test_connections_that_are_not_used_again(run: Run, parts: tuple[bytes, ...]) -> None:
    """Where the next answer might not be that of the next request, there is a new connection."""
    samples, asked = run(answered(writing(*parts), writing(*STREAM), count=2, pause=0.02))
    assert samples[1].outcome is Outcome.OK
    assert asked == [1, 2]


def test_an_old_connection_is_not_used_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may be about to close it."""
    monkeypatch.setattr(pool, "_REUSE_SECONDS", 0.01)
    samples, asked = run(answered(*[writing(*STREAM)] * 2, count=2, pause=0.03))
    assert {sample.outcome for sample in samples} == {Outcome.OK}
    assert asked == [1, 2]


async def resetting(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("end", [writing(close=True), resetting], ids=["closed", "aborted"])
def test_a_connection_that_closes_as_it_is_used_again(run: Run, end: Handler) -> None:
    """That is HTTP's own race, and the request is sent anew, once, on a fresh connection; where
    that closes as well, it is the server's doing.
    """
    good = writing(*STREAM)
    samples, asked = run(answered(good, end, good, end, end, count=3))
    assert [sample.outcome for sample in samples[:2]] == [Outcome.OK, Outcome.OK]
    assert samples[2].outcome is Outcome.CONNECTION
    assert asked == [1, 1, 2, 2, 3]


def test_what_was_begun_is_not_sent_anew(run: Run) -> None:
    """A used connection that breaks after the first byte has served a request, and badly."""
    cut = writing(CHUNKED, chunk(TOKEN), close=True)
    samples, asked = run(answered(writing(*STREAM), cut, count=2))
    assert [sample.outcome for sample in samples] == [Outcome.OK, Outcome.TRUNCATED]
    assert asked == [1, 1]


def test_a_slow_stream_is_not_a_stalled_one(run: Run) -> None:
    """Silence counts from the last bytes, not from the request."""
    parts = (CHUNKED, *[chunk(b": ping\n\n")] * 4, *STREAM[1:])
    (sample,), _ = run(answered(writing(*parts, pause=0.06)))
    assert sample.outcome is Outcome.OK
    assert sample.ended - sample.sent > 0.4


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for localhost, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", path, "-out", f"{path}.crt", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
def test_certificates_are_verified(
    run: Run, certificate: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    """A server that nobody vouches for is not measured."""
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    samples, asked = run(answered(*[writing(*STREAM)] * 2, tls=context, count=2))
    if is_trusted:
        assert ([sample.outcome for sample in samples], asked) == ([Outcome.OK] * 2, [1, 1])
    else:
        assert {sample.outcome for sample in samples} == {Outcome.CONNECTION}
        assert "certificate" in samples[0].detail
        assert not asked
