"""Every fault does what its name says, to the requests it was meant for."""

import json
from http.client import HTTPException, IncompleteRead
from typing import Any

import pytest

from . import Fault, Reply, Standin
from .client import EXACT, STREAM, opened
from .settings import CHAT, COMPLETIONS, FaultKind

BODIES = pytest.mark.parametrize("body", [EXACT, STREAM], ids=["whole", "stream"])


def struck(standin: Standin, kind: str, body: dict[str, Any], timeout: float = 10) -> Reply:
    """The answer to a request that the fault strikes."""
    standin.configure(faults=[{"kind": kind}])
    reply = standin.call("POST", COMPLETIONS, body, timeout=timeout)
    assert standin.requests()[-1]["fault"] == kind
    return reply


def tokens(events: list[Any]) -> int:
    """How many token ids the events carry."""
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return sum(len(choice["token_ids"]) for choice in choices)


class TestStatus:
    """Answers that never become a stream."""

    @BODIES
    @pytest.mark.parametrize("status", [400, 429, 500, 503])
    def test_errors(self, standin: Standin, status: int, body: dict[str, Any]) -> None:
        """An error status comes with vLLM's error object; some say when to try again."""
        reply = struck(standin, f"http_{status}", body)
        assert (reply.status, reply.json()["error"]["code"]) == (status, status)
        assert (reply.headers["Retry-After"] == "1") == (status in {429, 503})

    def test_empty(self, standin: Standin) -> None:
        """A 200 may have nothing in it."""
        reply = struck(standin, "empty_200", STREAM)
        assert (reply.status, reply.body) == (200, b"")

    def test_redirect(self, standin: Standin) -> None:
        """Who follows the redirect is remembered."""
        reply = struck(standin, "redirect", STREAM)
        assert reply.status == 307
        standin.call("POST", reply.headers["Location"], STREAM)
        assert standin.requests()[-1]["path"] == "/_standin/redirected"

    def test_endless_headers(self, standin: Standin) -> None:
        """Headers go on until the client has had enough."""
        with pytest.raises(HTTPException, match="more than 100 headers"):
            struck(standin, "endless_headers", STREAM)
        assert standin.call("GET", "/health").status == 200

    def test_health(self, standin: Standin) -> None:
        """Health fails with an empty body once a request has come, and nothing else does."""
        standin.configure(faults=[Fault("health_503", after=1)])
        assert standin.call("GET", "/health").status == 200
        assert standin.call("POST", COMPLETIONS, EXACT).status == 200
        reply = standin.call("GET", "/health")
        assert (reply.status, reply.body) == (503, b"")


class TestBroken:
    """Connections that do not end as they should."""

    @BODIES
    def test_stalled(self, standin: Standin, body: dict[str, Any]) -> None:
        """The connection stays open and nothing more comes."""
        with pytest.raises(TimeoutError):
            struck(standin, "stalled_stream", body, timeout=0.3)

    @pytest.mark.parametrize(
        ("kind", "error"), [("stalled_stream", TimeoutError), ("reset", ConnectionResetError)]
    )
    def test_midway(self, standin: Standin, kind: FaultKind, error: type[OSError]) -> None:
        """Half of the tokens have come before a stream breaks."""
        standin.configure(faults=[Fault(kind)], tpot_ms=5)
        with opened(standin, STREAM, timeout=0.5) as connection:
            response = connection.getresponse()
            lines = [response.readline() for _ in range(20)]
            assert json.loads(lines[-2][6:])["usage"]["completion_tokens"] == 10
            with pytest.raises(error):
                response.readline()

    @BODIES
    def test_reset(self, standin: Standin, body: dict[str, Any]) -> None:
        """The connection is reset."""
        with pytest.raises(ConnectionResetError):
            struck(standin, "reset", body)

    def test_truncated_stream(self, standin: Standin) -> None:
        """The stream ends properly as HTTP goes, without finish reason and [DONE]."""
        events = struck(standin, "truncated", STREAM).events()
        assert tokens(events) == 10
        assert not any(event["choices"][0]["finish_reason"] for event in events)

    def test_truncated_body(self, standin: Standin) -> None:
        """A whole answer is cut short of its Content-Length."""
        with pytest.raises(IncompleteRead):
            struck(standin, "truncated", EXACT)

    @BODIES
    def test_die(self, body: dict[str, Any]) -> None:
        """The process is gone with exit code 0, as vLLM after its engine's death."""
        with Standin() as standin:
            with pytest.raises((HTTPException, ConnectionError)):
                struck(standin, "die", body)
            assert standin.wait() == 0


class TestContent:
    """Streams that end well and are wrong."""

    def test_error_event(self, standin: Standin) -> None:
        """An error inside a 200 is followed by [DONE]."""
        *chunks, error, done = struck(standin, "sse_error", STREAM).events()
        assert (tokens(chunks), done) == (10, "[DONE]")
        assert error["error"]["type"] == "InternalServerError"

    def test_error_instead_of_a_body(self, standin: Standin) -> None:
        """Without a stream the same death is a 500."""
        assert struck(standin, "sse_error", EXACT).status == 500

    @BODIES
    def test_malformed(self, standin: Standin, body: dict[str, Any]) -> None:
        """One event, or the body, stops in the middle of its JSON."""
        reply = struck(standin, "malformed_json", body)
        with pytest.raises(json.JSONDecodeError):
            reply.events()

    @BODIES
    def test_huge_line(self, standin: Standin, body: dict[str, Any]) -> None:
        """One line has 64 MiB."""
        reply = struck(standin, "huge_line", body)
        assert max(map(len, reply.body.splitlines())) == len(b"data: ") + (64 << 20)

    @pytest.mark.parametrize(
        ("kind", "count", "reason"), [("abort_finish", 10, "abort"), ("wrong_count", 19, "length")]
    )
    def test_too_few_tokens(self, standin: Standin, kind: str, count: int, reason: str) -> None:
        """Fewer tokens than asked for, in the stream, its usage and the whole answer alike."""
        *chunks, usage, done = struck(standin, kind, STREAM).events()
        assert (tokens(chunks), usage["usage"]["completion_tokens"]) == (count, count)
        assert (chunks[-1]["choices"][0]["finish_reason"], done) == (reason, "[DONE]")
        choice = struck(standin, kind, EXACT).json()["choices"][0]
        assert (len(choice["token_ids"]), choice["finish_reason"]) == (count, reason)

    def test_a_single_token(self, standin: Standin) -> None:
        """A fault strikes an answer of one token, too."""
        events = struck(standin, "wrong_count", STREAM | {"max_tokens": 1}).events()
        assert (tokens(events), len(events)) == (0, 3)
        events = struck(standin, "truncated", STREAM | {"max_tokens": 1}).events()
        assert events == []


class TestChoice:
    """Which requests a fault strikes."""

    def statuses(self, standin: Standin, count: int) -> list[int]:
        """The statuses of so many chat requests."""
        return [standin.call("POST", CHAT, EXACT).status for _ in range(count)]

    def test_after(self, standin: Standin) -> None:
        """The first requests are spared, and counting starts when the fault is set."""
        for _ in range(2):
            standin.configure(faults=[Fault("http_500", after=2)])
            assert self.statuses(standin, 4) == [200, 200, 500, 500]

    def test_fraction(self, standin: Standin) -> None:
        """A fraction strikes the same requests for the same seed; the first match counts."""
        faults = [Fault("http_429", fraction=0.5), Fault("http_503", fraction=0.5)]
        standin.configure(faults=faults)
        first = self.statuses(standin, 40)
        standin.configure(faults=faults)
        assert self.statuses(standin, 40) == first
        assert 10 <= first.count(429) <= 30
        assert 2 <= first.count(503) <= 20

    def test_path(self, standin: Standin) -> None:
        """A fault can strike any path, and then spares the completions."""
        standin.configure(faults=[Fault("truncated", path="/metrics")])
        with pytest.raises(IncompleteRead):
            standin.call("GET", "/metrics")
        assert self.statuses(standin, 1) == [200]
