"""The connections to one server: made when needed, used again while they are fresh."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pytest_llmdeploy.load.connection import Connection
from pytest_llmdeploy.probes.trust import tls

# vLLM closes a connection that was idle for 5 s; using it at that very moment would fail.
_REUSE_SECONDS = 2.0
_PORTS = {"http": 80, "https": 443}


@dataclass(slots=True, eq=False)
class Pool:
    """Any number of connections; certificates are verified."""

    url: str
    _idle: deque[Connection] = field(default_factory=deque)
    _host: str = ""
    _port: int = 0
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"{self.url}: neither http:// nor https:// and a host")
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        if parts.scheme == "https":
            self._tls = tls()
            self._tls.set_alpn_protocols(["http/1.1"])

    def idle(self) -> Connection | None:
        """The connection that was used last, if it is fresh; all that are not are closed."""
        oldest = time.perf_counter() - _REUSE_SECONDS
        while self._idle and (self._idle[0].is_lost or self._idle[0].idle_since < oldest):
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            # Bytes that nobody asked for belong to no request.
            if not connection.is_lost and not connection.segments:
                return connection
            connection.abort()
        return None

    async def connect(self, seconds: float) -> Connection:
        """A new connection.

        Raises:
            OSError: when there is none; TimeoutError, not within `seconds`.
        """
        name = self._host if self._tls else None
        async with asyncio.timeout(seconds):
            transport, connection = await asyncio.get_running_loop().create_connection(
                Connection, self._host, self._port, ssl=self._tls, server_hostname=name
            )
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def keep(self, connection: Connection) -> None:
        """For another request."""
        connection.rest()
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.popleft().abort()
