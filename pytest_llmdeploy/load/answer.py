"""What became of one request: its answer read off a connection, or the fault that ended it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_llmdeploy.load.connection import Connection
from pytest_llmdeploy.load.framing import Framing, FramingError
from pytest_llmdeploy.load.samples import Outcome, Stream

_BYTES_PER_TOKEN = 4096
_BYTES_AT_LEAST = 1024**2
_HEAD_BYTES = 64 * 1024
_ERROR_BYTES = 2000
_OK = 200
_REDIRECTS = range(300, 400)
# Read in one go. Then other connections have their turn, lest their bytes wait to be stamped.
_SEGMENTS_AT_ONCE = 32

Ending = tuple[Outcome, str]


@dataclass(slots=True, eq=False)
class Answer:
    """Reads the answer to one request once it has ended.

    Whatever a server does, it takes bounded time and memory: a limit on the bytes, which grows with
    the tokens that were asked for, and the connection's own on silence.
    """

    expected_tokens: int
    stream: Stream = field(default_factory=Stream)
    #: When the last bytes had come, before they were read; 0 until then.
    ended: float = 0.0
    #: The server closed the connection without a word.
    is_unanswered: bool = False
    _framing: Framing = field(default_factory=Framing)
    _error: bytes = b""

    async def read(self, connection: Connection, turn: asyncio.Lock) -> Ending:
        """How the request ended; many bytes are read only in `turn`, after each other."""
        most = max(_BYTES_AT_LEAST, self.expected_tokens * _BYTES_PER_TOKEN)
        done = 0
        while True:
            await connection.woken()
            self.ended = time.perf_counter()
            async with turn:
                done, fault = await self._read_from(connection, done)
            if ending := fault or self._ending(connection, most):
                return ending
            connection.is_head_read = self._framing.is_head_read
            connection.wake_at = min(self._next_look(connection), most)

    @property
    def leaves_reusable(self) -> bool:
        """Whether the connection can serve another request."""
        return self._framing.is_reusable

    async def _read_from(self, connection: Connection, done: int) -> tuple[int, Ending | None]:
        """Reads the segments from number `done` on: how many are read now, and a fault."""
        while done < len(connection.segments):
            segments = connection.segments[done : done + _SEGMENTS_AT_ONCE]
            done += len(segments)
            if fault := self._push(segments):
                return done, fault
            if done < len(connection.segments):
                await asyncio.sleep(0)
        return done, None

    def _push(self, segments: Sequence[tuple[float, bytes]]) -> Ending | None:
        try:
            pieces = self._framing.push(segments)
        except FramingError as error:
            return Outcome.FRAMING, str(error)
        if self._is_ok:
            self.stream.push(pieces)
            return self.stream.fault
        self._error += b"".join(body for _, body in pieces)
        return self._http_error() if len(self._error) > _ERROR_BYTES else None

    @property
    def _is_ok(self) -> bool:
        return self._framing.status == _OK

    def _ending(self, connection: Connection, most: int) -> Ending | None:
        """How it ended, now that all bytes are read; None when it goes on."""
        framing = self._framing
        is_over = framing.is_complete or connection.is_lost or connection.is_silent
        if is_over and framing.is_head_read and not self._is_ok:
            return self._http_error()
        if framing.is_complete:
            return self.stream.end(self.expected_tokens)
        if connection.is_lost:
            return self._lost(connection)
        if connection.is_silent:
            return self._silent(connection)
        if not framing.is_head_read and connection.received > _HEAD_BYTES:
            return Outcome.HEADERS, f"no end of the headers within {_HEAD_BYTES:,} bytes"
        if connection.received >= most:
            return Outcome.OVERSIZED, f"the answer is larger than {most:,} bytes"
        return None

    def _http_error(self) -> Ending:
        status = self._framing.status
        if status in _REDIRECTS:
            return Outcome.REDIRECT, f"HTTP {status} to {self._framing.location or 'nowhere'}"
        text = self._error[:_ERROR_BYTES].decode("utf-8", "replace").strip()
        return Outcome.HTTP_ERROR, f"HTTP {status} {text[:200]}".strip()

    def _lost(self, connection: Connection) -> Ending:
        self.is_unanswered = not connection.received
        if connection.lost_by:
            return Outcome.RESET, f"{connection.lost_by}, after {self._progress}"
        if self.is_unanswered:
            return Outcome.CONNECTION, "the server closed the connection without an answer"
        if self._framing.ends_by_closing:
            return self.stream.end(self.expected_tokens)
        return Outcome.TRUNCATED, f"the connection was closed after {self._progress}"

    def _silent(self, connection: Connection) -> Ending:
        if connection.received and not self._framing.is_head_read:
            return Outcome.HEADERS, f"no end of the headers within {connection.patience:g} s"
        return (
            Outcome.STALLED,
            f"nothing came for {connection.patience:g} s, after {self._progress}",
        )

    @property
    def _progress(self) -> str:
        if not self._framing.is_head_read:
            return "no headers"
        return f"{sum(tokens for _, tokens in self.stream.stamps)} tokens"

    def _next_look(self, connection: Connection) -> int:
        """The number of bytes at which there is something to see."""
        if not self._framing.is_head_read:
            return connection.received + 1
        missing = self._framing.missing_bytes
        return connection.received + missing if missing is not None else 2**62
