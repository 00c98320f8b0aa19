"""A server that answers every request with bytes as they are, valid HTTP or not."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[], Iterable[bytes]]


@contextmanager
def raw_server(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that sends the parts of `answer()` and closes the connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with suppress(OSError):
                for part in answer():
                    self.request.sendall(part)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def ok(body: bytes, *, length: int | None = None) -> Answer:
    """A 200 with this body, which may claim another length."""
    size = len(body) if length is None else length
    return lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, body]


def chunked(parts: Callable[[], Iterable[bytes]]) -> Answer:
    """A 200 whose body comes in chunks and never says that it is over."""

    def answer() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for part in parts():
            yield b"%x\r\n%s\r\n" % (len(part), part)

    return answer
