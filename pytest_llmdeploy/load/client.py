"""The streaming client: stamps bytes as they arrive, and reads them when the request is over."""

from __future__ import annotations

import asyncio
import time
from typing import Self
from urllib.parse import urlsplit

from pytest_llmdeploy.load.answer import Answer, Ending
from pytest_llmdeploy.load.connection import Connection
from pytest_llmdeploy.load.pool import Pool
from pytest_llmdeploy.load.prompts import Prompt
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.probes.endpoint import Endpoint

CONNECT_SECONDS = 10.0


class Client:
    """Sends completions to one server, over as many connections as there are requests in flight.

    Nothing is parsed while an answer comes. A request is given up after `patience` seconds of
    silence. The loop had better be uvloop's; who runs it decides.
    """

    def __init__(
        self, endpoint: Endpoint, path: str = "/v1/completions", patience: float = 60.0
    ) -> None:
        self._pool = Pool(endpoint.url)
        self._patience = patience
        self._head = _head(endpoint, path)
        # Answers are read one after the other: those that end together would hold up the stamps of
        # all others together.
        self._turn = asyncio.Lock()
        self._busy: set[Connection] = set()

    @property
    def heard(self) -> float:
        """When the last bytes came of what is in flight; 0 when none did. The first ones of an
        answer do not count: a server that hangs still sends its headers.
        """
        answering = (each.segments for each in self._busy if len(each.segments) > 1)
        return max((segments[-1][0] for segments in answering), default=0.0)

    async def send(self, prompt: Prompt, due: float) -> Sample:
        """One request; whatever becomes of it is in the sample."""
        sent, answer = time.perf_counter(), Answer(prompt.output_tokens)
        try:
            outcome, detail = await self._send(prompt, answer)
        except TimeoutError:
            outcome, detail = Outcome.CONNECT_TIMEOUT, f"none within {CONNECT_SECONDS:g} s"
        except OSError as error:
            outcome, detail = Outcome.CONNECTION, str(error) or type(error).__name__
        except asyncio.CancelledError:
            outcome, detail = Outcome.UNFINISHED, "not finished when the run ended"
        return Sample(
            due=due,
            sent=sent,
            ended=answer.ended or time.perf_counter(),
            outcome=outcome,
            stamps=tuple(answer.stream.stamps),
            detail=detail,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives up the connections that were kept for further requests."""
        self._pool.close()
        # A transport ends in the loop's next turn.
        await asyncio.sleep(0)

    async def _send(self, prompt: Prompt, answer: Answer) -> Ending:
        """The answer; asked for anew if the server closed a connection that it had kept open just
        as it was used again. That is HTTP's own race, and says nothing of the server.
        """
        request = self._head % len(prompt.body) + prompt.body
        if (kept := self._pool.idle()) is not None:
            ending = await self._exchange(kept, request, answer)
            if not answer.is_unanswered:
                return ending
        connection = await self._pool.connect(CONNECT_SECONDS)
        return await self._exchange(connection, request, answer)

    async def _exchange(self, connection: Connection, request: bytes, answer: Answer) -> Ending:
        self._busy.add(connection)
        try:
            connection.ask(request, self._patience)
            return await answer.read(connection, self._turn)
        finally:
            self._busy.discard(connection)
            if answer.leaves_reusable and not connection.is_lost:
                self._pool.keep(connection)
            else:
                connection.abort()


def _head(endpoint: Endpoint, path: str) -> bytes:
    """The head of every request, up to the length of its body."""
    parts = urlsplit(endpoint.url)
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        **endpoint.headers,
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        # Compression would gather tokens before they leave.
        "Accept-Encoding": "identity",
    }
    lines = [f"POST {parts.path.rstrip('/')}{path} HTTP/1.1", *map(": ".join, headers.items())]
    head = "\r\n".join(lines).encode().replace(b"%", b"%%")
    return head + b"\r\nContent-Length: %d\r\n\r\n"
