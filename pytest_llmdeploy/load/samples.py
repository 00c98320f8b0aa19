"""One request, as the client saw it. Times are seconds on the monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import msgspec


class Outcome(StrEnum):
    """How a request ended; everything but OK counts as infinitely slow."""

    OK = "ok"
    HTTP_ERROR = "http error"
    CONNECTION = "connection failed"
    STALLED = "stalled"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    SERVER_ERROR = "error in the stream"
    ABORTED = "aborted by the server"
    WRONG_COUNT = "wrong number of tokens"
    OVERSIZED = "oversized"
    UNFINISHED = "unfinished"


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
    def stall(self) -> float | None:
        """The longest time between two token events, in milliseconds."""
        if not self.is_ok:
            return math.inf
        times = [time for time, _ in self.stamps]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return max(gaps) * 1000 if gaps else None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def read_stream(
    chunks: Sequence[tuple[float, bytes]], expected_tokens: int
) -> tuple[Outcome, Sequence[tuple[float, int]], str]:
    """Outcome, token stamps and detail of a finished SSE stream, from its chunks as they came."""
    stamps: list[tuple[float, int]] = []
    counted, finish, done = 0, "", False
    for time, data in _events(chunks):
        if data == b"[DONE]":
            done = True
            continue
        try:
            event = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Outcome.MALFORMED, stamps, f"{error}: {_excerpt(data)}"
        if event.error is not None:
            return Outcome.SERVER_ERROR, stamps, _excerpt(msgspec.json.encode(event.error))
        tokens = _tokens(event, counted)
        counted += tokens
        if tokens:
            stamps.append((time, tokens))
        finish = next((c.finish_reason for c in event.choices if c.finish_reason), finish)
    if finish not in {"", "length", "stop"}:
        return Outcome.ABORTED, stamps, f"finish_reason {finish!r}"
    if not done or not finish:
        return Outcome.TRUNCATED, stamps, f"the stream ended after {counted} tokens"
    if counted != expected_tokens:
        detail = f"{counted} tokens instead of {expected_tokens}"
        return Outcome.WRONG_COUNT, stamps, detail
    return Outcome.OK, stamps, ""


def _tokens(event: _Event, counted: int) -> int:
    """The new tokens of an event: by ids, else by the running usage, else one per text."""
    ids = [choice.token_ids for choice in event.choices if choice.token_ids is not None]
    if ids:
        return sum(map(len, ids))
    if not event.choices:
        return 0
    if event.usage is not None:
        return event.usage.completion_tokens - counted
    return sum(bool(choice.text) for choice in event.choices)


def _events(chunks: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The data of every SSE event, with the time at which its end arrived."""
    found: list[tuple[float, bytes]] = []
    rest = b""
    for time, chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append((time, b"\n".join(lines)))
    return found


def _excerpt(data: bytes, length: int = 200) -> str:
    return data[:length].decode("utf-8", "replace")
