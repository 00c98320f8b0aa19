"""HTTP/1.1 answers: where the head ends, what the body is, and when it is complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import httptools

_INTERIM = range(100, 200)


class FramingError(Exception):
    """The bytes are no HTTP answer, or more than one."""


@dataclass(slots=True, eq=False)
class _Head:
    """What httptools found so far. It knows the parser only while that parses: two objects that
    know each other would live until a garbage collection, and there is none while times are taken.
    """

    parser: httptools.HttpResponseParser | None = None
    is_read: bool = False
    is_complete: bool = False
    answers: int = 0
    length: int | None = None
    is_chunked: bool = False
    says_close: bool = False
    location: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def on_message_begin(self) -> None:
        self.answers += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length":
                self.length = int(value)
            case b"transfer-encoding":
                self.is_chunked = value.lower().strip().endswith(b"chunked")
            case b"connection":
                self.says_close = b"close" in value.lower()
            case b"location":
                self.location = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.is_read = True

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    def on_message_complete(self) -> None:
        # An interim answer ("103 Early Hints") only says that the answer is still to come.
        if self.parser is not None and self.parser.get_status_code() in _INTERIM:
            self.answers, self.is_read = 0, False
        else:
            self.is_complete = True


class Framing:
    """One answer to one request, from its bytes in whatever pieces they come."""

    def __init__(self) -> None:
        self._head = _Head()
        self._parser = httptools.HttpResponseParser(self._head)
        self._body_bytes = 0

    def push(self, segments: Iterable[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
        """The parts of the body that are in stamped segments, with the stamps.

        Raises:
            FramingError: when they are not HTTP, or go on after the end of the answer.
        """
        head, feed, found = self._head, self._parser.feed_data, self._head.bodies
        head.parser = self._parser
        pieces: list[tuple[float, bytes]] = []
        data = b""
        try:
            for stamp, data in segments:
                feed(data)
                if found:
                    pieces.append((stamp, found[0] if len(found) == 1 else b"".join(found)))
                    found.clear()
        except httptools.HttpParserUpgrade:
            raise FramingError("the server changes to another protocol") from None
        except httptools.HttpParserError as error:
            raise FramingError(f"{error}: {data[:100]!r}") from None
        finally:
            head.parser = None
        if head.answers > 1:
            raise FramingError(f"bytes after the end of the answer: {data[-100:]!r}")
        if head.length is not None:
            self._body_bytes += sum(len(body) for _, body in pieces)
        return pieces

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    @property
    def location(self) -> str:
        """Where a redirect leads."""
        return self._head.location

    @property
    def is_head_read(self) -> bool:
        return self._head.is_read

    @property
    def is_complete(self) -> bool:
        return self._head.is_complete

    @property
    def ends_by_closing(self) -> bool:
        """Whether only the end of the connection is the end of the answer."""
        return self.is_head_read and not self._head.is_chunked and self._head.length is None

    @property
    def missing_bytes(self) -> int | None:
        """How much of the body is still to come, where the head said it."""
        if self._head.length is None or self._head.is_chunked:
            return None
        return self._head.length - self._body_bytes

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can serve another request."""
        return (
            self.is_complete
            and not self._head.says_close
            and self._parser.get_http_version() == "1.1"
        )
