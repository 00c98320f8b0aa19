"""Two data-parallel engines of a real vLLM, served evenly, and one of them starved."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import yaml

from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import Run
from tests.specs import REPOSITORY

COPIES = REPOSITORY / "specs" / "tiny-llama-cpu-dp2.yaml"
STEADY = {
    "name": "steady",
    "input_tokens": 32,
    "output_tokens": {"uniform": [4, 12]},
    "rate": "12/s",
    "warmup": "500ms",
    "max_duration": "60s",
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running vLLM with two engines."""
    log = tmp_path_factory.mktemp("copies") / "server.log"
    server, process = launch(load_spec(COPIES), log, lambda _text: None)
    yield server
    assert not process.stop().processes


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """The deployment of two copies, of which nothing but the balance is required."""
    document: dict[str, Any] = yaml.safe_load(COPIES.read_text())
    document["model"]["id"] = str(COPIES.parent / "models" / "tiny-llama")
    document["workloads"] = [STEADY]
    document["require"] = {"balance": {"requests": "30%", "tokens": "30%"}}
    path = tmp_path / "copies.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class Pinning(BaseHTTPRequestHandler):
    """Hands on every request with a header that has vLLM give it to its first engine."""

    protocol_version = "HTTP/1.1"
    server_at: ClassVar[str] = ""

    def do_GET(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Says nothing."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": "application/json", "X-data-parallel-rank": "0"}
        connection = http.client.HTTPConnection(self.server_at, timeout=60)
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"] or "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
        connection.close()


@pytest.fixture
def pinned(copies: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A way to the server on which everything ends up at its first engine."""
    monkeypatch.setattr(Pinning, "server_at", urlsplit(copies.url).netloc)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Pinning)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    proxy.server_close()
    thread.join()


def test_engines_that_are_served_evenly_pass(
    copies: Server, gate: Callable[..., Run], spec: Path
) -> None:
    """At about the number of requests that the test asks for, long before the time is over."""
    run = gate("--deploy-spec", spec, "--deploy-url", copies.url).finish()
    for name in ("request_balance", "token_balance"):
        row = run.row(name)
        assert row["status"] == "PASS", run.output
        assert set(row["evidence"]["counts"]) == {"engine 0", "engine 1"}
        assert row["bound"] <= row["limit"] == 0.3
    assert 80 <= run.row("request_balance")["evidence"]["n"] <= 160
    assert run.entry["traffic"]["steady"]["seconds"] < 40


def test_a_starved_engine_fails(pinned: str, gate: Callable[..., Run], spec: Path) -> None:
    """All requests are pinned to one engine: the row names it, and says what to look at."""
    run = gate("--deploy-spec", spec, "--deploy-url", pinned).finish()
    for name in ("request_balance", "token_balance"):
        row = run.row(name)
        assert row["status"] == "FAIL", run.output
        assert row["measured"] == 1
        assert row["evidence"]["busiest"] == "engine 0"
        assert row["evidence"]["counts"]["engine 1"] == 0
        assert "routed" in row["hint"]
    assert run.entry["traffic"]["steady"]["seconds"] < 40
