"""The ways to misbehave: instead of an answer, in place of its body, or amid its stream."""

import asyncio
import itertools
import os
import socket
import struct
from http import HTTPStatus
from typing import NoReturn

from aiohttp import web

from .answer import Answer
from .settings import FaultKind
from .wire import error_body, sse

REDIRECTED = "/_standin/redirected"
MEBIBYTE = 1 << 20
HUGE_LINE = 64 * MEBIBYTE
COMMENT_BYTES = 64 << 10
GARBAGE = b"\x16\x03\x01 this is no HTTP\r\n\r\n"
ENGINE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def shortened(answer: Answer, kind: FaultKind | None) -> Answer:
    """Return the answer with fewer tokens than were asked for, if that is the fault."""
    if kind == "wrong_count":
        return answer.cut(len(answer.tokens) - 1, answer.finish)
    if kind == "abort_finish":
        return answer.cut(len(answer.tokens) // 2, "abort")
    return answer


async def instead(kind: FaultKind, request: web.Request, drip: float) -> web.StreamResponse | None:
    """Answer in the handler's place; `drip` is the pause between endless headers in seconds."""
    match kind:
        case "http_400" | "http_429" | "http_500" | "http_503":
            return _error(HTTPStatus(int(kind.removeprefix("http_"))))
        case "health_503":
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
        case "empty_200":
            return web.Response()
        case "redirect":
            headers = {"Location": REDIRECTED}
            return web.Response(status=HTTPStatus.TEMPORARY_REDIRECT, headers=headers)
        case "endless_headers":
            return await _endless_headers(request, drip)
        case "silent":
            await _forever()
        case "garbage":
            _transport(request).write(GARBAGE)
            await _forever()
        case "endless_body":
            return await _endless_body(request, drip)
    return None


async def amid(
    kind: FaultKind, request: web.Request, response: web.StreamResponse, event: bytes
) -> bool:
    """Strike in place of one event of an open stream; False means the stream ends here."""
    match kind:
        case "stalled_stream":
            await _forever()
        case "reset":
            await _reset(request)
        case "die":
            os._exit(0)
        case "truncated":
            return False
        case "sse_error":
            body = error_body(HTTPStatus.INTERNAL_SERVER_ERROR, ENGINE_DIED)
            await response.write(sse(body) + sse("[DONE]"))
            return False
        case "malformed_json":
            await response.write(event[: len(event) // 2] + b"\n\n")
            return True
        case "huge_line":
            await _write_huge_line(response)
    await response.write(event)
    return True


async def body_of(
    kind: FaultKind, request: web.Request, response: web.Response
) -> web.StreamResponse:
    """Spoil an answer that is sent as a whole."""
    whole = response.body
    body = whole if isinstance(whole, bytes) else b""
    match kind:
        case "stalled_stream":
            await _forever()
        case "reset":
            await _reset(request)
        case "die":
            os._exit(0)
        case "truncated":
            await _half(request, response, body)
        case "sse_error":
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR)
        case "malformed_json":
            response.body = body[: len(body) // 2]
        case "huge_line":
            return await _huge(request)
    return response


async def _forever() -> NoReturn:
    # Ends all the same: the handler is cancelled when the connection is lost.
    while True:
        await asyncio.Event().wait()


def _transport(request: web.Request) -> asyncio.Transport:
    if not isinstance(request.transport, asyncio.Transport):
        msg = "the client is gone"
        raise ConnectionResetError(msg)
    return request.transport


async def _reset(request: web.Request) -> NoReturn:
    transport = _transport(request)
    # A linger time of zero makes the kernel send RST where it would send FIN.
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
    await _forever()


async def _half(request: web.Request, response: web.Response, body: bytes) -> NoReturn:
    partial = web.StreamResponse(headers={"Content-Type": response.content_type})
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(body[: len(body) // 2])
    _transport(request).close()
    await _forever()


async def _endless_headers(request: web.Request, drip: float) -> NoReturn:
    transport = _transport(request)
    transport.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        transport.write(b"X-Endless-%d: %s\r\n" % (number, b"x" * 64))
        await asyncio.sleep(drip)
    raise AssertionError


async def _endless_body(request: web.Request, drip: float) -> NoReturn:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        # Comments are no events: only their bytes add up.
        await response.write(b": " + b"x" * COMMENT_BYTES + b"\n\n")
        await asyncio.sleep(drip)


async def _huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await _write_huge_line(response)
    return response


async def _write_huge_line(response: web.StreamResponse) -> None:
    block = b"x" * MEBIBYTE
    await response.write(b"data: ")
    for _ in range(HUGE_LINE // MEBIBYTE):
        await response.write(block)
    await response.write(b"\n\n")


def _error(status: HTTPStatus) -> web.Response:
    message = ENGINE_DIED if status == HTTPStatus.INTERNAL_SERVER_ERROR else status.description
    retry = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    headers = {"Retry-After": "1"} if status in retry else None
    return web.json_response(error_body(status, message), status=status, headers=headers)
