"""One request, as the client saw it. Times are seconds on the monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

import msgspec

_MOST_EVENT_BYTES = 256 * 1024


class Outcome(StrEnum):
    """How a request ended; everything but OK counts as infinitely slow."""

    OK = "ok"
    CONNECTION = "connection failed"
    CONNECT_TIMEOUT = "connection timed out"
    RESET = "connection reset"
    HTTP_ERROR = "http error"
    REDIRECT = "redirect"
    HEADERS = "endless headers"
    FRAMING = "malformed HTTP"
    STALLED = "stalled"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    SERVER_ERROR = "error in the stream"
    ABORTED = "aborted by the server"
    WRONG_COUNT = "wrong number of tokens"
    OVERSIZED = "oversized"
    UNFINISHED = "unfinished"


# How requests end that nobody answers.
UNANSWERED = {Outcome.STALLED, Outcome.CONNECT_TIMEOUT, Outcome.UNFINISHED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """When a request was due, sent and answered; `stamps` are (time, tokens) of token events."""

    due: float
    sent: float
    ended: float
    outcome: Outcome
    stamps: Sequence[tuple[float, int]] = ()
    detail: str = ""

    @property
    def is_ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def ttft(self) -> float:
        """Milliseconds from the due time to the first token."""
        return (self.stamps[0][0] - self.due) * 1000 if self.is_ok else math.inf

    @property
    def e2el(self) -> float:
        """Milliseconds from the due time to the last token."""
        return (self.stamps[-1][0] - self.due) * 1000 if self.is_ok else math.inf

    @property
    def tpot(self) -> float | None:
        """Milliseconds per token after the first event; None when there was only one event."""
        if not self.is_ok:
            return math.inf
        tokens = sum(count for _, count in self.stamps[1:])
        if not tokens:
            return None
        return (self.stamps[-1][0] - self.stamps[0][0]) * 1000 / tokens

    @property
    def itl(self) -> Sequence[tuple[float, int]] | float | None:
        """Milliseconds per token of every gap between two token events, with its tokens; an event
        of several tokens spreads its gap over them. None when there was only one event.
        """
        if not self.is_ok:
            return math.inf
        pairs = pairwise(self.stamps)
        return [((late - early) * 1000 / n, n) for (early, _), (late, n) in pairs] or None

    @property
    def stall(self) -> float | None:
        """The longest time between two token events, in milliseconds."""
        if not self.is_ok:
            return math.inf
        times = [time for time, _ in self.stamps]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return max(gaps) * 1000 if gaps else None


# More than these are drawn and compared no better, and every one makes the report longer.
MOST_REQUESTS = 20_000
_DECIMALS = 3


def requests_json(samples: Sequence[Sample], origin: float) -> dict[str, Any]:
    """Every request as columns, in order of arrival: when it was `due` and when it `ended` (seconds
    since `origin`), how (`outcome`), and its latencies in ms, null where it has none. Of more than
    `MOST_REQUESTS`, the first ones.
    """
    shown = samples[:MOST_REQUESTS]
    return {
        "due": [_rounded(sample.due - origin) for sample in shown],
        "ended": [_rounded(sample.ended - origin) for sample in shown],
        "outcome": [str(sample.outcome) for sample in shown],
        "ttft": [_rounded(sample.ttft) for sample in shown],
        "tpot": [_rounded(sample.tpot) for sample in shown],
        "e2el": [_rounded(sample.e2el) for sample in shown],
        "stall": [_rounded(sample.stall) for sample in shown],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, _DECIMALS)


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: int = 0


class _Delta(msgspec.Struct, gc=False):
    """What a chunk adds to a chat; an older name of the reasoning is still in use."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str = ""
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True, eq=False)
class Stream:
    """Reads an SSE stream piece by piece; the token stamps are those of the pieces that completed
    an event.
    """

    stamps: list[tuple[float, int]] = field(default_factory=list)
    fault: tuple[Outcome, str] | None = None
    _rest: bytes = b""
    _counted: int = 0
    _finish: str = ""
    _is_done: bool = False
    _is_empty: bool = True

    def push(self, pieces: Iterable[tuple[float, bytes]]) -> None:
        """The next bytes and when they came; nothing more is read after a fault.

        Each event costs time in which other streams are not stamped: hence one loop, and a short
        way for an event that is one line in one piece, as nearly all are.
        """
        stamps, counted = self.stamps, self._counted
        for time, piece in pieces:
            self._is_empty = False
            if (
                not self._rest
                and piece.startswith(b"data: {")
                and piece.find(b"\n") == len(piece) - 2
            ):
                found: Sequence[bytes] = (piece[6:-2],)
            else:
                found = self._split(piece)
            for data in found:
                if self.fault is not None or (event := self._event(data)) is None:
                    continue
                if tokens := _tokens(event, counted):
                    counted += tokens
                    stamps.append((time, tokens))
                for choice in event.choices:
                    if choice.finish_reason:
                        self._finish = choice.finish_reason
        self._counted = counted

    def end(self, expected_tokens: int) -> tuple[Outcome, str]:
        """Outcome and detail, now that no more bytes will come."""
        if self.fault is not None:
            return self.fault
        if self._is_empty:
            return Outcome.EMPTY, "the answer has no body"
        if self._finish not in {"", "length", "stop", "tool_calls"}:
            return Outcome.ABORTED, f"finish_reason {self._finish!r}"
        if not self._is_done or not self._finish:
            return Outcome.TRUNCATED, f"the stream ended after {self._counted} tokens"
        if self._counted != expected_tokens:
            return Outcome.WRONG_COUNT, f"{self._counted} tokens instead of {expected_tokens}"
        return Outcome.OK, ""

    def _split(self, piece: bytes) -> list[bytes]:
        """The data of all events that `piece` completes, but for empty ones."""
        text = (self._rest + piece).replace(b"\r\n", b"\n")
        *whole, self._rest = text.split(b"\n\n")
        if len(self._rest) > _MOST_EVENT_BYTES and self.fault is None:
            self.fault = Outcome.OVERSIZED, f"an event of more than {_MOST_EVENT_BYTES:,} bytes"
        return [data for event in whole if (data := _data(event))]

    def _event(self, data: bytes) -> _Event | None:
        try:
            event = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if data == b"[DONE]":
                self._is_done = True
            else:
                self.fault = Outcome.MALFORMED, f"{error}: {_excerpt(data)}"
            return None
        if event.error is not None:
            self.fault = Outcome.SERVER_ERROR, _excerpt(msgspec.json.encode(event.error))
            return None
        return event


def read_stream(
    chunks: Sequence[tuple[float, bytes]], expected_tokens: int
) -> tuple[Outcome, Sequence[tuple[float, int]], str]:
    """Outcome, token stamps and detail of a finished SSE stream, from its chunks as they came."""
    stream = Stream()
    stream.push(chunks)
    outcome, detail = stream.end(expected_tokens)
    return outcome, stream.stamps, detail


def _tokens(event: _Event, counted: int) -> int:
    """The new tokens of an event: by ids, else by the running usage, else one per text."""
    choices = event.choices
    if len(choices) == 1 and choices[0].token_ids:
        return len(choices[0].token_ids)
    ids = [choice.token_ids for choice in choices if choice.token_ids is not None]
    if ids:
        return sum(map(len, ids))
    if not choices:
        return 0
    if event.usage is not None:
        return max(0, event.usage.completion_tokens - counted)
    return sum(_says_something(choice) for choice in event.choices)


def _says_something(choice: _Choice) -> bool:
    said = choice.delta or _Delta()
    texts = (choice.text, said.content, said.reasoning, said.reasoning_content, said.tool_calls)
    return any(texts)


def _data(event: bytes) -> bytes:
    """The data of one SSE event; empty when it is a comment."""
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _excerpt(data: bytes, length: int = 200) -> str:
    return data[:length].decode("utf-8", "replace")
