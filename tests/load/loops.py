"""What the tests of the client share: either event loop, and a server of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Run(Protocol):
    """`asyncio.run`, or one like it."""

    def __call__(self, main: Coroutine[Any, Any, T], /) -> T: ...


@contextlib.asynccontextmanager
async def serving(
    *answers: Handler, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that reads requests and answers each by the next handler, whatever the connection;
    its URL, and the connection of each request by its number.
    """
    pending = iter(answers)
    opened: list[asyncio.StreamWriter] = []
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        number = len(opened)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError), contextlib.closing(writer):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                await reader.readexactly(length)
                asked.append(number)
                await next(pending)(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for writer in opened:
            writer.transport.abort()
        await asyncio.sleep(0)


def writing(*parts: bytes, pause: float = 0.005, close: bool = False) -> Handler:
    """Parts that arrive one by one."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            writer.close()

    return answer
