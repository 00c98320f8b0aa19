"""What a stream of bytes says of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.load.samples import (
    MOST_REQUESTS,
    Outcome,
    Sample,
    read_stream,
    requests_json,
)

LATENCIES = ("ttft", "tpot", "e2el", "stall")


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def chunk(ids: Sequence[int] | None = None, text: str = "", **more: Any) -> bytes:
    """An event with one choice; `finish` and `usage` as vLLM sends them."""
    finish = more.pop("finish", None)
    usage = more.pop("usage", None)
    choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish, **more}
    return event(choices=[choice], usage=usage and {"completion_tokens": usage})


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"completion_tokens": 3})
GOOD = [chunk([65], "A"), chunk([66], "é"), chunk([67], "", finish="length"), USAGE, DONE]


def read(*parts: bytes, tokens: int = 3) -> tuple[Outcome, list[tuple[float, int]], str]:
    """Reads parts that came at 0, 1, 2 … seconds."""
    timed = [(float(at), part) for at, part in enumerate(parts)]
    outcome, stamps, detail = read_stream(timed, tokens)
    return outcome, list(stamps), detail


@settings(deadline=None)
@given(data=st.data(), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_bytes_may_be_split_anywhere(data: st.DataObject, newline: bytes) -> None:
    """However the network cuts the stream, an event counts when its last byte has come."""
    events = [part.replace(b"\n", newline) for part in GOOD]
    whole = b"".join(events)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    edges = [0, *cuts, len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    ends = [sum(map(len, events[: index + 1])) for index in range(3)]
    arrived = [sum(map(len, pieces[: index + 1])) for index in range(len(pieces))]
    expected = [
        (float(next(i for i, so_far in enumerate(arrived) if so_far >= end)), 1) for end in ends
    ]
    assert read(*pieces) == (Outcome.OK, expected, "")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([*GOOD, b"data: ", b"\n\n", b'{"a":'])))
def test_any_bytes_have_an_outcome(parts: list[bytes]) -> None:
    """Nothing that a server sends makes a request disappear: it ends in one way or the other."""
    outcome, stamps, _ = read(*parts)
    if outcome is Outcome.OK:
        assert sum(count for _, count in stamps) == 3


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([chunk([1, 2]), chunk([3], finish="length")], id="token ids"),
        pytest.param([chunk(usage=2), chunk(usage=3, finish="length")], id="running usage"),
        pytest.param(
            [chunk([1, 2], "x", usage=9), chunk([3], finish="length", usage=9)], id="ids over usage"
        ),
    ],
)
def test_tokens_are_counted_exactly(parts: list[bytes]) -> None:
    """A chunk may have more tokens than one, and none of them any text."""
    assert read(*parts, USAGE, DONE) == (Outcome.OK, [(0.0, 2), (1.0, 1)], "")


def test_texts_are_counted_where_nothing_better_is_said() -> None:
    """Without ids and usage, each text is a token, and an empty one none."""
    parts = [chunk(text="a"), chunk(text=""), chunk(text="b"), chunk(text="c", finish="stop")]
    assert read(*parts, DONE) == (Outcome.OK, [(0.0, 1), (2.0, 1), (3.0, 1)], "")


def test_events_without_tokens_are_no_tokens() -> None:
    """Comments, an opening event and the closing usage are not stamped."""
    parts = [b": ping\n\n", chunk([]), *GOOD]
    assert read(*parts) == (Outcome.OK, [(2.0, 1), (3.0, 1), (4.0, 1)], "")


def delta(ids: Sequence[int] | None = None, **more: Any) -> bytes:
    """A chunk of a chat; what is not `finish` or `usage` is its delta."""
    finish, usage = more.pop("finish", None), more.pop("usage", None)
    choice = {"index": 0, "delta": more, "token_ids": ids, "finish_reason": finish}
    usage = usage if usage is None else {"completion_tokens": usage, "prompt_tokens": 9}
    return event(choices=[choice], usage=usage)


ROLE = delta(role="assistant", content="")
CHATS = {
    "ids": [
        ROLE,
        delta([1], content="a"),
        delta([2], content=""),
        delta([3], content="c", finish="length"),
    ],
    "running usage": [
        delta(role="assistant", content="", usage=0),
        delta(content="a", usage=1),
        delta(content="", usage=2),
        delta(content="", usage=3, finish="stop"),
    ],
    "texts of all kinds": [
        ROLE,
        delta(reasoning="a"),
        delta(content="b", reasoning=None),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}], finish="tool_calls"),
    ],
    "the older name of reasoning": [
        ROLE,
        delta(reasoning_content="a"),
        delta(reasoning_content="b"),
        delta(content="c", finish="stop"),
    ],
}


@pytest.mark.parametrize("parts", CHATS.values(), ids=CHATS)
def test_a_chat_s_tokens_are_those_after_the_role(parts: list[bytes]) -> None:
    """The chunk that names the role is no token, whatever else is said of the counts."""
    assert read(*parts, USAGE, DONE) == (Outcome.OK, [(1.0, 1), (2.0, 1), (3.0, 1)], "")


def test_a_usage_that_falls_takes_no_tokens_back() -> None:
    """What was counted stays counted."""
    parts = [chunk(usage=2), chunk(usage=1), chunk(usage=3, finish="length")]
    assert read(*parts, USAGE, DONE) == (Outcome.OK, [(0.0, 2), (2.0, 1)], "")


def test_empty_deltas_are_no_tokens() -> None:
    """Without ids and usage, a delta that adds nothing is none; nor is one without any."""
    bare = event(choices=[{"index": 0}])
    parts = [ROLE, bare, delta(content=None), delta(content="a"), delta(tool_calls=[])]
    ends = [delta(content="b"), delta(content="c"), delta(finish="stop"), DONE]
    assert read(*parts, *ends) == (Outcome.OK, [(3.0, 1), (5.0, 1), (6.0, 1)], "")


ERROR = event(error={"message": "EngineCore encountered an issue.", "code": 500})
BAD = {
    "nothing": ([], Outcome.EMPTY),
    "no [DONE]": (GOOD[:-1], Outcome.TRUNCATED),
    "half a [DONE]": ([*GOOD[:-1], b"data: [DONE]"], Outcome.TRUNCATED),
    "no finish reason": ([chunk([1, 2, 3]), USAGE, DONE], Outcome.TRUNCATED),
    "an error, then [DONE]": ([*GOOD[:2], ERROR, DONE], Outcome.SERVER_ERROR),
    "an error after all tokens": ([*GOOD[:4], ERROR, DONE], Outcome.SERVER_ERROR),
    "an error that is a text": ([event(error="no"), DONE], Outcome.SERVER_ERROR),
    "abort": ([chunk([1]), chunk([2, 3], finish="abort"), DONE], Outcome.ABORTED),
    "an unknown end": ([chunk([1, 2, 3], finish="error"), DONE], Outcome.ABORTED),
    "too few": ([chunk([1, 2], finish="stop"), DONE], Outcome.WRONG_COUNT),
    "too many": ([chunk([1, 2, 3, 4], finish="length"), DONE], Outcome.WRONG_COUNT),
    "half an event": ([GOOD[0][:20] + b"\n\n", *GOOD[1:]], Outcome.MALFORMED),
    "no UTF-8": ([b'data: {"choices":[{"text":"\xff"}]}\n\n', *GOOD], Outcome.MALFORMED),
    "deep": ([b'data: {"x":' + b"[" * 100_000 + b"\n\n", *GOOD], Outcome.MALFORMED),
    "another shape": ([event(choices=3), *GOOD], Outcome.MALFORMED),
    "no JSON": ([b"data: hello\n\n", *GOOD], Outcome.MALFORMED),
    "HTML": ([b"<html>hello</html>"], Outcome.TRUNCATED),
}


@pytest.mark.parametrize(("parts", "expected"), BAD.values(), ids=BAD)
def test_a_bad_stream_has_its_own_outcome(parts: list[bytes], expected: Outcome) -> None:
    """Whatever is wrong is told apart, in words, and none of it is OK."""
    outcome, _, detail = read(*parts)
    assert outcome is expected
    assert detail


def test_the_text_of_an_error_is_kept() -> None:
    """Why the engine died is said in the engine's words."""
    assert "EngineCore encountered an issue." in read(ERROR, DONE)[2]


def test_latencies() -> None:
    """Times count from when the request was due: waiting to be sent is waiting."""
    stamps = [(10.5, 1), (10.6, 2), (10.9, 1)]
    sample = Sample(due=10.0, sent=10.2, ended=11.0, outcome=Outcome.OK, stamps=stamps)
    assert sample.ttft == pytest.approx(500)
    assert sample.e2el == pytest.approx(900)
    assert sample.tpot == pytest.approx(400 / 3)
    assert sample.stall == pytest.approx(300)


def test_one_event_has_no_time_per_token() -> None:
    """Between one event and none there is no time to divide."""
    sample = Sample(due=0, sent=0, ended=1, outcome=Outcome.OK, stamps=[(0.5, 4)])
    assert (sample.tpot, sample.stall) == (None, None)
    assert sample.ttft == sample.e2el == 500


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
@pytest.mark.parametrize("metric", LATENCIES)
def test_a_failed_request_is_infinitely_slow(outcome: Outcome, metric: str) -> None:
    """Failing fast makes nothing faster, even when tokens had come."""
    sample = Sample(due=0, sent=0, ended=0.1, outcome=outcome, stamps=[(0.01, 1), (0.02, 1)])
    assert getattr(sample, metric) == math.inf


def test_requests_as_columns() -> None:
    """Of every request one value in each column; a failed one has no latency."""
    good = Sample(
        due=10.0, sent=10.0, ended=10.5, outcome=Outcome.OK, stamps=((10.25, 1), (10.5, 5))
    )
    bad = Sample(due=11.0, sent=11.0, ended=11.25, outcome=Outcome.RESET)
    assert requests_json([good, bad], 10.0) == {
        "due": [0.0, 1.0],
        "ended": [0.5, 1.25],
        "outcome": ["ok", "connection reset"],
        "ttft": [250.0, None],
        "tpot": [50.0, None],
        "e2el": [500.0, None],
        "stall": [250.0, None],
    }
    assert len(requests_json([bad] * (MOST_REQUESTS + 1), 0.0)["due"]) == MOST_REQUESTS
