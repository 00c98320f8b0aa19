"""The web application: vLLM's endpoints, and /_standin/ to steer it and to look inside."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from . import faults, metrics
from .answer import Answer
from .ask import Ask, check_model, prompt_tokens
from .engine import Engine, Run
from .settings import CHAT, COMPLETIONS, FaultKind, Settings
from .wire import Json, RefusalError, read_object, sse

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TICKET = "ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What was decided for a request the moment it arrived."""

    ordinal: int
    settings: Settings
    engine: Engine
    fault: FaultKind | None


class Server:
    """The state behind the endpoints."""

    def __init__(self, settings: Settings) -> None:
        self._initial = settings
        self._started = time.time()
        self._forget()

    def app(self) -> web.Application:
        """Return the application; every path is guarded and may misbehave."""
        app = web.Application(
            middlewares=[_errors_as_json, self._guard, self._misbehave], client_max_size=1 << 28
        )
        app.add_routes([
            web.get("/health", self._empty),
            web.get("/ping", self._empty),
            web.get("/version", self._version),
            web.get("/metrics", self._metrics),
            web.get("/v1/models", self._models),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post(COMPLETIONS, self._complete),
            web.post(CHAT, self._complete),
            web.post("/_standin/settings", self._configure),
            web.post("/_standin/reset", self._reset),
            web.get("/_standin/requests", self._requests),
            web.route("*", faults.REDIRECTED, self._redirected),
        ])  # fmt: skip
        return app

    # Steering

    def _forget(self) -> None:
        self._engines: list[Engine] = []
        self._received: list[Json] = []
        self._apply(self._initial)

    def _apply(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: Counter[str] = Counter()
        self._alike: Counter[int] = Counter()
        del self._engines[settings.engines :]
        for engine in self._engines:
            engine.resize(settings.max_num_seqs)
        self._engines += [
            Engine(index, settings.max_num_seqs)
            for index in range(len(self._engines), settings.engines)
        ]

    async def _configure(self, request: web.Request) -> web.Response:
        try:
            self._apply(self._settings.updated(await request.json()))
        except (TypeError, ValueError) as error:
            return web.Response(status=400, text=str(error))
        return web.Response(text=self._settings.to_json(), content_type="application/json")

    async def _reset(self, _: web.Request) -> web.Response:
        self._forget()
        return web.Response()

    async def _requests(self, _: web.Request) -> web.Response:
        return web.json_response(self._received)

    async def _redirected(self, request: web.Request) -> web.Response:
        await self._record(request)
        return web.json_response({})

    # On the way to a handler

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self._settings.api_key
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if key and request.path.startswith("/v1") and (scheme.lower(), token) != ("bearer", key):
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/_standin/"):
            return await handler(request)
        tokens = await _prompt_ids(request)
        request[TICKET] = ticket = self._ticket(request.path, tokens)
        if request.path in {COMPLETIONS, CHAT}:
            await self._record(request, engine=ticket.engine.index, fault=ticket.fault)
        if ticket.fault is None:
            return await handler(request)
        # At least a millisecond, lest endless headers starve every other request.
        drip = max(ticket.settings.tpot(ticket.ordinal), 0.001)
        # An empty response is falsy in some versions of aiohttp.
        if (answered := await faults.instead(ticket.fault, request, drip)) is not None:
            return answered
        response = await handler(request)
        if isinstance(response, web.Response):
            return await faults.body_of(ticket.fault, request, response)
        return response

    def _ticket(self, path: str, tokens: int) -> Ticket:
        settings = self._settings
        kind = COMPLETIONS if path == CHAT else path
        ordinal, completions = self._seen[kind], self._seen[COMPLETIONS]
        self._seen[kind] += 1
        place = ordinal % settings.engines if settings.routing == "round_robin" else 0
        alike = (tokens, self._alike[tokens])
        self._alike[tokens] += 1
        fault = settings.fault(path, ordinal, completions, alike)
        return Ticket(ordinal, settings, self._engines[place], fault)

    async def _record(self, request: web.Request, **more: object) -> None:
        received = time.time()
        try:
            body: Any = read_object(await request.read())
        except RefusalError:
            body = await request.text()
        headers = {name.lower(): value for name, value in request.headers.items()}
        entry = {"path": request.path, "headers": headers, "body": body, "received": received}
        self._received.append(entry | more)

    # vLLM's endpoints

    async def _empty(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self._settings.version})

    async def _metrics(self, _: web.Request) -> web.Response:
        text = metrics.render(self._engines, self._settings, self._started)
        headers = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=text.encode(), headers=headers)

    async def _models(self, _: web.Request) -> web.Response:
        settings = self._settings
        model = {
            "id": settings.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": settings.root,
            "parent": None,
            "max_model_len": settings.max_model_len,
            "permission": [],
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = read_object(await request.read())
        check_model(body, self._settings)
        tokens = prompt_tokens(body, chat="messages" in body)
        limit = self._settings.max_model_len
        return web.json_response({"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = read_object(await request.read())
        check_model(body, self._settings)
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(token in range(256) for token in tokens):
            raise RefusalError(400, "tokens: a list of token ids is required", "tokens")
        return web.json_response({"prompt": bytes(tokens).decode("utf-8", "replace")})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        ticket: Ticket = request[TICKET]
        body = read_object(await request.read())
        ask = Ask.parse(body, ticket.settings, chat=request.path == CHAT)
        answer = faults.shortened(Answer.to(ask, ticket.settings), ticket.fault)
        if ask.stream:
            return await self._stream(request, ticket, answer)
        async with ticket.engine.admit(answer, ticket.settings, ticket.ordinal) as run:
            async for _ in ticket.engine.spans(run):
                pass
        return web.json_response(answer.whole())

    async def _stream(
        self, request: web.Request, ticket: Ticket, answer: Answer
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8"}
        response = web.StreamResponse(headers=headers)
        # vLLM sends its headers before the request has a seat: they say nothing about TTFT.
        await response.prepare(request)
        async with ticket.engine.admit(answer, ticket.settings, ticket.ordinal) as run:
            if not await self._send_chunks(request, response, ticket, run):
                run.outcome = "error"
                return response
        await response.write(b"".join(map(sse, answer.closing())) + sse("[DONE]"))
        return response

    async def _send_chunks(
        self, request: web.Request, response: web.StreamResponse, ticket: Ticket, run: Run
    ) -> bool:
        answer = run.answer
        halfway = len(answer.tokens) // 2
        async for start, stop in ticket.engine.spans(run):
            if start == 0:
                await response.write(b"".join(map(sse, answer.opening())))
            event = sse(answer.chunk(start, stop))
            if ticket.fault is None or not start <= halfway < stop:
                await response.write(event)
            elif not await faults.amid(ticket.fault, request, response, event):
                return False
        return True


async def _prompt_ids(request: web.Request) -> int:
    """How many token ids a completion gives as its prompt."""
    if request.path not in {COMPLETIONS, CHAT}:
        return 0
    try:
        prompt: Any = read_object(await request.read()).get("prompt")
    except RefusalError:
        return 0
    return len(prompt) if isinstance(prompt, list) else 0


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusalError as refusal:
        return web.json_response(refusal.body, status=refusal.status)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)
