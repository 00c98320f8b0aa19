"""The stand-in answers like vLLM, queues like vLLM, and never outlives its tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import Fault, Settings, Standin
from .client import EXACT, STREAM, eventually, opened
from .settings import CHAT, COMPLETIONS

ENDPOINTS = pytest.mark.parametrize("endpoint", [COMPLETIONS, CHAT])
BAD_REQUEST = (400, "BadRequestError")


class TestSettings:
    """The knobs as a value."""

    def test_json_round_trip(self) -> None:
        """Faults and latency shares come back from JSON as what they were."""
        settings = Settings(
            ttft_slow=((0.1, 500.0),),
            cache_config={"cache_dtype": "fp8"},
            faults=(Fault("reset", 0.5, after=3), Fault("http_500", path="/metrics")),
        )
        assert Settings.from_json(settings.to_json()) == settings

    @pytest.mark.parametrize(
        ("knobs", "message"),
        [
            ({"tftt_ms": 3}, "unknown knob tftt_ms; known: model, "),
            ({"faults": [{"kind": "explode"}]}, "unknown fault kind 'explode'; known: "),
            ({"faults": [{"kind": "die", "fraction": 2}]}, "fault die: fraction 2 is not"),
            ({"engines": 0}, "engines is 0; it has to be at least 1"),
        ],
    )
    def test_mistakes_are_refused(self, knobs: dict[str, Any], message: str) -> None:
        """A knob that would silently do nothing is an error that names it."""
        with pytest.raises(ValueError, match=message):
            Settings().updated(knobs)

    def test_slow_fraction_is_seeded(self) -> None:
        """One request in ten is slow, and the same ones for the same seed."""
        first, again, other = (
            [Settings(ttft_slow=((0.1, 500.0),), seed=seed).ttft(n) for n in range(2000)]
            for seed in (1, 1, 2)
        )
        assert first == again != other
        assert set(first) == {0.001, 0.5}
        assert 150 < first.count(0.5) < 250

    def test_preemptions_add_up(self) -> None:
        """A rate of 0.3 per request makes 30 whole preemptions in 100 requests."""
        settings = Settings(preemptions_per_request=0.3)
        assert sum(settings.preemptions(ordinal) for ordinal in range(100)) == 30


class TestLife:
    """The process starts, publishes its port and ends."""

    def test_leaving_the_block_stops_it(self) -> None:
        """After the block the server has ended by itself with exit code 0."""
        with Standin() as standin:
            assert standin.call("GET", "/health").status == 200
        assert standin.wait() == 0

    def test_sigterm_ends_it_under_load(self) -> None:
        """SIGTERM ends the server with exit code 0 although a stream is open."""
        with Standin(tpot_ms=10_000) as standin, opened(standin, STREAM) as connection:
            assert connection.getresponse().status == 200
            os.kill(standin.pid, signal.SIGTERM)
            assert standin.wait() == 0

    def test_kill(self) -> None:
        """A killed server is gone at once, and the block still ends cleanly."""
        with Standin() as standin:
            standin.kill()
            assert standin.wait() == -signal.SIGKILL
            with pytest.raises(ConnectionError):
                standin.call("GET", "/health")

    def test_never_orphaned(self) -> None:
        """When the process that started it is killed, the server goes as well."""
        package = __package__ or ""
        script = (
            f"from {package} import Standin; import time\n"
            "with Standin() as standin: print(standin.pid, flush=True); time.sleep(60)"
        )
        root = Path(__file__).resolve().parents[len(package.split("."))]
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.kill()
        eventually(lambda: not _alive(pid))

    def test_a_failed_start_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that ends before it listens is an error with its exit code."""
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RuntimeError, match=r"does not listen \(exit code 1\)"), Standin():
            pass


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestEndpoints:
    """What can be read without a completion."""

    def test_small_ones(self, standin: Standin) -> None:
        """Health and ping are empty, version and model say what was set."""
        standin.configure(model="m", max_model_len=99, version="0.30.1", root="/m")
        assert standin.call("GET", "/health").body == standin.call("GET", "/ping").body == b""
        assert standin.call("GET", "/version").json() == {"version": "0.30.1"}
        (model,) = standin.call("GET", "/v1/models").json()["data"]
        told = {key: model[key] for key in ("id", "root", "owned_by", "max_model_len")}
        assert told == {"id": "m", "root": "/m", "owned_by": "vllm", "max_model_len": 99}

    def test_unknown_path_and_method(self, standin: Standin) -> None:
        """FastAPI's own 404 and 405 have a detail and no error object."""
        assert standin.call("GET", "/nope").json() == {"detail": "Not Found"}
        reply = standin.call("GET", COMPLETIONS)
        assert (reply.status, reply.json()) == (405, {"detail": "Method Not Allowed"})

    def test_tokenize(self, standin: Standin) -> None:
        """Every byte is a token."""
        reply = standin.call("POST", "/tokenize", {"prompt": "hé"}).json()
        assert reply == {"count": 3, "max_model_len": 512, "tokens": [104, 195, 169]}

    def test_detokenize(self, standin: Standin) -> None:
        """The text of which these are the tokens; what are none is refused."""
        reply = standin.call("POST", "/detokenize", {"tokens": [104, 195, 169]})
        assert reply.json() == {"prompt": "hé"}
        assert standin.call("POST", "/detokenize", {"tokens": ["a"]}).status == 400

    def test_tokenize_for_another_model(self, standin: Standin) -> None:
        """Refused, as completions are."""
        for path in ("/tokenize", "/detokenize"):
            body = {"model": "other", "prompt": "a", "tokens": [1]}
            assert standin.call("POST", path, body).status == 404

    def test_api_key(self, standin: Standin) -> None:
        """With a key, /v1 wants it and /health does not."""
        standin.configure(api_key="secret")
        assert standin.call("GET", "/health").status == 200
        reply = standin.call("POST", COMPLETIONS, EXACT, {"Authorization": "Bearer wrong"})
        assert (reply.status, reply.json()) == (401, {"error": "Unauthorized"})
        reply = standin.call("POST", COMPLETIONS, EXACT, {"Authorization": "Bearer secret"})
        assert reply.status == 200

    def test_a_knob_that_does_not_exist(self, standin: Standin) -> None:
        """The server's complaint about a knob arrives as an exception."""
        with pytest.raises(ValueError, match="unknown knob speed"):
            standin.configure(speed=3)


class TestCompletions:
    """Answers, streamed and whole."""

    @ENDPOINTS
    def test_whole(self, standin: Standin, endpoint: str) -> None:
        """A whole answer has exactly the tokens asked for and gives its parallelism away."""
        reply = standin.call("POST", endpoint, EXACT).json()
        (choice,) = reply["choices"]
        assert (len(choice["token_ids"]), choice["finish_reason"]) == (20, "length")
        assert reply["usage"]["completion_tokens"] == 20
        assert reply["system_fingerprint"].startswith("vllm-0.32.0-tp2-")

    @ENDPOINTS
    def test_stream(self, standin: Standin, endpoint: str) -> None:
        """A stream counts its tokens in every chunk and ends with usage and [DONE]."""
        reply = standin.call("POST", endpoint, STREAM)
        *chunks, usage, done = reply.events()
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        tokens = [chunk for chunk in chunks if chunk["choices"][0].get("token_ids")]
        counts = [chunk["usage"]["completion_tokens"] for chunk in tokens]
        assert counts == list(range(1, 21))
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 20)
        assert (usage["system_fingerprint"][:16], done) == ("vllm-0.32.0-tp2-", "[DONE]")

    @ENDPOINTS
    def test_stream_without_usage(self, standin: Standin, endpoint: str) -> None:
        """Without usage the last token chunk is the end and carries the fingerprint."""
        events = standin.call("POST", endpoint, EXACT | {"stream": True}).events()
        *chunks, last, done = events
        assert not any({"usage", "system_fingerprint"} & chunk.keys() for chunk in chunks)
        assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert last["system_fingerprint"].startswith("vllm-0.32.0-tp2-")

    def test_prompt_ids_come_first(self, standin: Standin) -> None:
        """The first chunk of a completion returns the prompt's ids, a chat's role chunk too."""
        completion = standin.call("POST", COMPLETIONS, STREAM).events()[0]
        assert completion["choices"][0]["prompt_token_ids"] == EXACT["prompt"]
        chat = standin.call("POST", CHAT, STREAM).events()[0]
        assert bytes(chat["prompt_token_ids"]) == b"<user>hi\n"
        assert chat["choices"][0]["delta"] == {"role": "assistant", "content": ""}

    def test_chunks_coalesce(self, standin: Standin) -> None:
        """A chunk may hold several tokens, the last one fewer."""
        standin.configure(chunk_tokens=8, engines=2, tensor_parallel=1)
        events = standin.call("POST", COMPLETIONS, STREAM).events()
        assert [len(event["choices"][0]["token_ids"]) for event in events[:-2]] == [8, 8, 4]
        assert events[-2]["system_fingerprint"].startswith("vllm-0.32.0-dp2-")

    @pytest.mark.parametrize(
        ("changes", "count", "reason"),
        [
            ({"ignore_eos": False}, 16, "stop"),
            ({"ignore_eos": False, "min_tokens": 18}, 18, "stop"),
            ({"ignore_eos": False, "min_tokens": 20}, 20, "length"),
            ({"max_tokens": None, "ignore_eos": False}, 16, "length"),
            ({"prompt": [1] * 510}, 2, "length"),
        ],
    )
    def test_length(
        self, standin: Standin, changes: dict[str, Any], count: int, reason: str
    ) -> None:
        """An answer ends at its own end, the limit, or the edge of the context."""
        choice = standin.call("POST", COMPLETIONS, EXACT | changes).json()["choices"][0]
        assert (len(choice["token_ids"]), choice["finish_reason"]) == (count, reason)

    def test_same_prompt_same_answer(self, standin: Standin) -> None:
        """The text depends on the prompt and the seed alone."""
        first, again = (standin.call("POST", COMPLETIONS, EXACT).json() for _ in range(2))
        other = standin.call("POST", COMPLETIONS, EXACT | {"prompt": [1]}).json()
        texts = [answer["choices"][0]["text"] for answer in (first, again, other)]
        assert texts[0] == texts[1] != texts[2]

    @pytest.mark.parametrize(
        ("changes", "expected", "message"),
        [
            ({"model": "foo"}, (404, "NotFoundError", "model"), "The model `foo` does not exist."),
            ({"prompt": [1] * 600}, (*BAD_REQUEST, "input_tokens"), "contains 600 input"),
            ({"prompt": "x" * 600}, (*BAD_REQUEST, "input_tokens"), "at least 513 input"),
            ({"prompt": [999]}, (*BAD_REQUEST, "prompt"), "Token id 999 is out of"),
            ({"prompt": None}, (*BAD_REQUEST, "prompt"), "is required"),
            ({"max_tokens": 0}, (*BAD_REQUEST, "max_tokens"), "at least 1, got 0"),
            ({"min_tokens": 21}, (*BAD_REQUEST, None), "equal to max_tokens=20, got 21"),
        ],
    )
    def test_refused(
        self,
        standin: Standin,
        changes: dict[str, Any],
        expected: tuple[int, str, str | None],
        message: str,
    ) -> None:
        """A request that cannot be served gets vLLM's error object, streamed or not."""
        reply = standin.call("POST", COMPLETIONS, STREAM | changes)
        error = reply.json()["error"]
        assert (error["code"], error["type"], error["param"]) == expected
        assert reply.status == error["code"]
        assert message in error["message"]

    def test_bad_messages(self, standin: Standin) -> None:
        """A chat needs messages with role and content."""
        reply = standin.call("POST", CHAT, EXACT | {"messages": [{"role": "user"}]})
        assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")

    def test_malformed_json(self, standin: Standin) -> None:
        """A body that is no JSON is FastAPI's 400, and is remembered as text."""
        reply = standin.call("POST", COMPLETIONS, b"{")
        assert (reply.status, reply.json()["error"]["type"]) == (400, "Bad Request")
        assert "json_invalid" in reply.json()["error"]["message"]
        assert standin.requests()[0]["body"] == "{"
        assert standin.call("POST", COMPLETIONS, b"[]").status == 400

    def test_requests_are_remembered(self, standin: Standin) -> None:
        """What arrived can be read back, in order, with the headers."""
        standin.call("POST", COMPLETIONS, EXACT, {"X-Mark": "7"})
        standin.call("POST", CHAT, EXACT)
        first, second = standin.requests()
        assert (first["body"], first["headers"]["x-mark"]) == (EXACT, "7")
        assert (second["path"], second["fault"], second["engine"]) == (CHAT, None, 0)
        assert 0 <= second["received"] - first["received"] < 5
