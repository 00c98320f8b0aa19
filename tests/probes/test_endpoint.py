"""vLLM's endpoints, read from a stand-in that is at its best and at its worst."""

from __future__ import annotations

import gzip
import itertools
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.probes import endpoint as module
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.serving.process import free_port
from tests.probes.raw_server import Answer, chunked, ok, raw_server
from tests.standin import Fault, Standin
from tests.standin.settings import FaultKind

MIB = 1024**2
READS: dict[str, Callable[[Endpoint], object]] = {
    "/version": Endpoint.version,
    "/v1/models": Endpoint.models,
    "/metrics": Endpoint.metrics,
}


@contextmanager
def refused(url: str) -> Iterator[list[str]]:
    """Expects an EndpointError within seconds and 64 MiB; its text, without the port."""
    texts: list[str] = []
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(EndpointError) as caught:
        yield texts
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 8
    assert peak < 64 * MIB
    texts.append(str(caught.value).replace(url, "http://server"))


def complete(url: str, **overrides: Any) -> module.Completion:
    given = {"model": "tiny-llama", "prompt": [1, 2, 3], "tokens": 4, "timeout": 1.0}
    return Endpoint(url).complete(**{**given, **overrides})


def test_a_good_server(standin: Standin) -> None:
    """What a server says of itself arrives unchanged."""
    found = Endpoint(standin.url)
    assert found.is_healthy()
    assert found.version() == "0.32.0"
    assert [model["id"] for model in found.models()] == ["tiny-llama"]
    (labels,) = found.metrics().labels("vllm:cache_config_info")
    assert labels["num_gpu_blocks"] == "4096"


def test_a_completion(standin: Standin) -> None:
    """The time to the first token is that of the stream, not of the headers or of the end."""
    standin.configure(ttft_ms=150, tpot_ms=700)
    done = complete(standin.url, timeout=10)
    assert 0.14 <= done.first_token_seconds < 2.2
    assert done.fingerprint.startswith("vllm-0.32.0-tp2-")
    (request,) = standin.requests()
    assert (request["body"]["max_tokens"], request["body"]["prompt"]) == (4, [1, 2, 3])


def test_the_key_is_sent_and_not_shown(standin: Standin) -> None:
    """A server that wants a key gets it; who prints the endpoint does not."""
    standin.configure(api_key="s3cret")
    assert Endpoint(standin.url, "s3cret").models()
    assert "s3cret" not in repr(Endpoint(standin.url, "s3cret"))
    with pytest.raises(EndpointError, match="answers HTTP 401"):
        Endpoint(standin.url).models()


def test_this_machine_is_reached_without_a_proxy(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment is not for the server on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Endpoint(standin.url).version() == "0.32.0"


def test_unhealthy(standin: Standin) -> None:
    """503, a redirect and a closed port are not health."""
    for kind in ("health_503", "redirect"):
        standin.configure(faults=[Fault(kind, path="/health")])
        assert not Endpoint(standin.url).is_healthy()
    assert not Endpoint(f"http://127.0.0.1:{free_port()}").is_healthy()


# Half of the metrics, and none of them, are still in the format of metrics.
WHERE_METRICS_ARE_WRONG = {"http_500", "redirect", "huge_line", "truncated", "reset"}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (path, kind)
        for path in READS
        for kind in (*sorted(WHERE_METRICS_ARE_WRONG), "malformed_json", "empty_200")
        if path != "/metrics" or kind in WHERE_METRICS_ARE_WRONG
    ],
)
def test_a_faulty_answer(standin: Standin, kind: FaultKind, path: str) -> None:
    """Every fault is an EndpointError that names the address; nothing else gets out."""
    standin.configure(faults=[Fault(kind, path=path)])
    with refused(standin.url) as texts:
        READS[path](Endpoint(standin.url))
    assert texts[0].startswith(f"http://server{path} ")


def test_a_redirect_is_not_followed(standin: Standin) -> None:
    """What a server says elsewhere is not what it says."""
    standin.configure(faults=[Fault("redirect")])
    with refused(standin.url):
        complete(standin.url)
    assert [request["path"] for request in standin.requests()] == ["/v1/completions"]


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe\x00garbage{", b"<html>hello</html>", b"[1, 2]", b"[" * 100_000],
    ids=["bytes", "html", "list", "deep"],
)
def test_another_kind_of_server(path: str, body: bytes) -> None:
    """What answers at that port need not be a vLLM."""
    with raw_server(ok(body)) as url, refused(url):
        READS[path](Endpoint(url))


@pytest.mark.parametrize("body", [b'{"data": 3}', b'{"data": [1]}', b"{}"])
def test_models_that_are_none(body: bytes) -> None:
    """JSON of another shape is no list of models."""
    with raw_server(ok(body)) as url, refused(url) as texts:
        Endpoint(url).models()
    assert texts == ["http://server/v1/models does not list models"]


def test_an_answer_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that trickles is given up, though it is never silent."""

    def trickle() -> Iterator[bytes]:
        for _ in itertools.count():
            yield b" "
            time.sleep(0.01)

    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.3)
    with raw_server(chunked(trickle)) as url:
        with refused(url) as texts:
            Endpoint(url).version()
        with refused(url) as completion:
            complete(url, timeout=0.3)
    assert texts == ["http://server/version does not come to an end within 0.3 s"]
    assert completion == ["http://server/v1/completions does not come to an end within 0.3 s"]


def test_headers_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that trickles is given up as well: no byte of it is late."""

    def trickle() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _ in range(100):
            yield b"x"
            time.sleep(0.01)

    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.1)
    with raw_server(trickle) as url:
        with refused(url) as texts:
            Endpoint(url).version()
        with refused(url) as completion:
            complete(url, timeout=0.2)
    assert texts == ["http://server/version does not answer: no end of the headers within 0.3 s"]
    assert completion == ["the test completion failed: no end of the headers within 0.3 s"]


def test_a_compressed_answer() -> None:
    """Nobody asked for it, and a few bytes can stand for gigabytes."""
    bomb = gzip.compress(bytes(32 * MIB))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with raw_server(lambda: [head, bomb]) as url:
        for ask in (Endpoint(url).version, lambda: complete(url)):
            with refused(url) as texts:
                ask()
            assert texts[0].endswith(" answers in gzip, which nobody asked for")


@pytest.mark.parametrize(
    "kind",
    [
        "sse_error",
        "truncated",
        "wrong_count",
        "abort_finish",
        "malformed_json",
        "http_400",
        "http_500",
        "redirect",
        "empty_200",
        "reset",
        "stalled_stream",
        "huge_line",
        "endless_headers",
    ],
)
def test_a_faulty_completion(
    standin: Standin, kind: FaultKind, snapshot: SnapshotAssertion
) -> None:
    """A server that is healthy and can't serve is found out, and the text says how."""
    standin.configure(faults=[Fault(kind)])
    with refused(standin.url) as texts:
        complete(standin.url)
    assert texts[0].partition('"cmpl-')[0] == snapshot


def test_a_server_that_dies_over_the_completion() -> None:
    """A connection that breaks amid the stream is no completion."""
    with Standin(faults=[Fault("die")]) as standin, refused(standin.url) as texts:
        complete(standin.url)
    assert texts == ["the test completion failed: Response ended prematurely"]


STREAMS: dict[str, Answer] = {
    "not even SSE": ok(b"hello"),
    "an array": ok(b'data: [1]\n\ndata: {"usage": null}\n\n'),
    "deep": ok(b'data: {"x":' + b"[" * 100_000 + b"\n\n"),
    "a usage that is none": ok(b'data: {"usage": [1]}\n\n'),
    "a fingerprint that is none": ok(b'data: {"system_fingerprint": {"a": 1}}\n\n'),
    "an error without an end": ok(b'data: {"error": "' + b"x" * 900_000 + b'"}\n\n'),
}


@pytest.mark.parametrize("answer", STREAMS.values(), ids=STREAMS)
def test_a_stream_of_something_else(answer: Answer) -> None:
    """A 200 with other contents is no completion."""
    with raw_server(answer) as url, refused(url) as texts:
        complete(url)
    assert len(texts[0]) < 1000


def test_a_closed_port() -> None:
    """Nobody there: the text says so in the system's own words, without an object's address."""
    url = f"http://127.0.0.1:{free_port()}"
    for ask in (Endpoint(url).version, lambda: complete(url)):
        with refused(url) as texts:
            ask()
        assert "Connection refused" in texts[0]
        assert "object at" not in texts[0]
