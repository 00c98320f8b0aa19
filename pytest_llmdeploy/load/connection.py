"""One HTTP connection: it stamps the bytes that arrive, and leaves what they mean for later."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

_CRLF_TWICE = b"\r\n\r\n"
# In fewer bytes than these, an end that was cut in two could hide.
_LEAST = len(_CRLF_TWICE)
# How a chunk looks whose event ends in CRLF as well: the end of an answer never does.
_CRLF_THRICE = b"\r\n\r\n\r\n"


@dataclass(slots=True, eq=False)
class Connection(asyncio.Protocol):
    """Bytes with their stamps, for one request after the other.

    Whoever awaits `woken` decides what the bytes mean. He is woken when the answer may have ended:
    when `received` reaches `wake_at`, when bytes look like the end of a chunked answer (perhaps
    only look so), when the connection is lost, and when nothing came for too long.
    """

    segments: list[tuple[float, bytes]] = field(default_factory=list)
    received: int = 0
    wake_at: int = 0
    #: Seconds of silence that wake.
    patience: float = 0.0
    #: Whether silence is counted from the last bytes, and not from the request.
    is_head_read: bool = False
    is_silent: bool = False
    is_lost: bool = False
    #: Why it was lost; empty when the server just closed it.
    lost_by: str = ""
    idle_since: float = 0.0
    _sent: float = 0.0
    _transport: asyncio.Transport | None = None
    _waiter: asyncio.Future[None] | None = None
    _is_woken: bool = False
    _timer: asyncio.TimerHandle | None = None

    def ask(self, request: bytes, patience: float) -> None:
        """Sends a request; after `patience` seconds of silence it wakes."""
        self.segments = []
        self.received, self.wake_at = 0, 0
        self.is_head_read = self.is_silent = self._is_woken = False
        self._sent, self.patience = perf_counter(), patience
        self._timer = asyncio.get_running_loop().call_later(patience, self._listen)
        if self._transport is not None:
            self._transport.write(request)

    async def woken(self) -> None:
        """Waits until there is something to look at."""
        if not (self._is_woken or self.is_lost):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_woken = False

    def rest(self) -> None:
        """Nothing is awaited any more, until the next request."""
        self.segments = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.idle_since = perf_counter()

    def abort(self) -> None:
        self.rest()
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all the methods, but not the base class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.segments.append((perf_counter(), data))
        self.received = received = self.received + len(data)
        if (
            received >= self.wake_at
            or (data.endswith(_CRLF_TWICE) and not data.endswith(_CRLF_THRICE))
            or len(data) < _LEAST
        ):
            self._wake()

    def eof_received(self) -> None:
        """The server will send no more: closing follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.lost_by = str(exc or "")
        self._transport = None
        self._wake()

    def _wake(self) -> None:
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _listen(self) -> None:
        """Wakes after too long a silence, else comes back when there may have been one."""
        since = self.segments[-1][0] if self.is_head_read and self.segments else self._sent
        left = since + self.patience - perf_counter()
        if left <= 0:
            self.is_silent = True
            self._wake()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._listen)
