"""The streaming client: stamps bytes as they arrive, and reads them when the request is over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

from pytest_llmdeploy.load.prompts import Prompt
from pytest_llmdeploy.load.samples import Outcome, Sample, read_stream
from pytest_llmdeploy.probes.endpoint import Endpoint

STALL_SECONDS = 60.0
# vLLM closes a connection that was idle for 5 s; using it at that very moment would fail.
_REUSE_SECONDS = 2.0
_BYTES_PER_TOKEN = 4096
_BYTES_AT_LEAST = 1024**2


@dataclass(frozen=True)
class Client:
    """Sends completions to one server over one session."""

    session: aiohttp.ClientSession
    url: str

    async def send(self, prompt: Prompt, due: float) -> Sample:
        """One request; whatever becomes of it is in the sample."""
        chunks: list[tuple[float, bytes]] = []
        sent = time.perf_counter()
        try:
            outcome, detail = await self._stream_once(prompt, chunks)
        except TimeoutError:
            outcome, detail = Outcome.STALLED, f"nothing came for {STALL_SECONDS:g} s"
        except (aiohttp.ClientPayloadError, ConnectionResetError) as error:
            outcome, detail = Outcome.TRUNCATED, str(error)
        except (aiohttp.ClientConnectionError, OSError) as error:
            outcome, detail = Outcome.CONNECTION, str(error)
        except (aiohttp.ClientError, ValueError) as error:
            outcome, detail = Outcome.MALFORMED, str(error)
        except asyncio.CancelledError:
            outcome, detail = Outcome.UNFINISHED, "not finished when the run ended"
        ended = time.perf_counter()
        stamps: tuple[tuple[float, int], ...] = ()
        if outcome is Outcome.OK:
            outcome, read, detail = read_stream(chunks, prompt.output_tokens)
            stamps = tuple(read)
        return Sample(
            due=due, sent=sent, ended=ended, outcome=outcome, stamps=stamps, detail=detail
        )

    async def _stream_once(
        self, prompt: Prompt, chunks: list[tuple[float, bytes]]
    ) -> tuple[Outcome, str]:
        """The answer; sent anew if the server closed a connection that it had kept open just as it
        was used again. That is HTTP's own race, and says nothing of the server.
        """
        connection = {"is_reused": False}
        try:
            return await self._stream(prompt, chunks, connection)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            if not connection["is_reused"] or chunks:
                raise
        return await self._stream(prompt, chunks, connection)

    async def _stream(
        self, prompt: Prompt, chunks: list[tuple[float, bytes]], connection: dict[str, bool]
    ) -> tuple[Outcome, str]:
        allowed = max(_BYTES_AT_LEAST, prompt.output_tokens * _BYTES_PER_TOKEN)
        async with self.session.post(
            self.url, data=prompt.body, allow_redirects=False, trace_request_ctx=connection
        ) as response:
            if response.status != 200:  # noqa: PLR2004 - HTTP's OK
                text = (await response.content.read(2000)).decode("utf-8", "replace")
                return Outcome.HTTP_ERROR, f"HTTP {response.status} {text.strip()[:200]}"
            async for chunk in response.content.iter_any():
                chunks.append((time.perf_counter(), chunk))
                allowed -= len(chunk)
                if allowed < 0:
                    return Outcome.OVERSIZED, "the answer is larger than any completion"
        return Outcome.OK, ""


def new_session(endpoint: Endpoint) -> aiohttp.ClientSession:
    """A session without limits on connections, and with a bound on silence."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        trace_configs=[trace],
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_REUSE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_read=STALL_SECONDS),
        headers={
            **endpoint.headers,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        },
        read_bufsize=1024**2,
        auto_decompress=False,
        trust_env=not endpoint.is_loopback,
    )


async def _note_reuse(_session: object, context: SimpleNamespace, _params: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx["is_reused"] = True
