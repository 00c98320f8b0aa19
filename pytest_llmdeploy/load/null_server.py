"""A server that does nothing but stream tokens on time: what is slow about it is the client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def null_server(gap_seconds: float) -> AsyncIterator[str]:
    """Its URL on the loopback; each token of an answer follows `gap_seconds` after the last one."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(gap_seconds), "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


class _Answers(asyncio.Protocol):
    """One connection; a request comes when the answer to the one before it has ended."""

    def __init__(self, gap_seconds: float) -> None:
        self._gap = gap_seconds
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= int(length[1] if length else 0):
            self._received = b""
            asked = _TOKENS.search(body)
            tokens = int(asked[1]) if asked else 1
            self._transport.write(_HEAD + _token(is_last=tokens == 1))
            self._write_later(self._loop.time(), 1, tokens)

    def _write_later(self, began: float, written: int, tokens: int) -> None:
        if written == tokens:
            self._transport.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        due = began + written * self._gap
        self._loop.call_at(due, self._write, began, written, tokens)

    def _write(self, began: float, written: int, tokens: int) -> None:
        self._transport.write(_token(is_last=written + 1 == tokens))
        self._write_later(began, written + 1, tokens)


def _token(*, is_last: bool) -> bytes:
    finish = b'"length"' if is_last else b"null"
    event = b'{"choices":[{"text":"a","token_ids":[7],"finish_reason":%s}]}' % finish
    return _chunk(b"data: " + event + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
