"""The answer to a completion request, in vLLM's JSON shapes."""

import hashlib
import random
import time
import uuid
from dataclasses import dataclass, replace
from typing import Self

from .ask import Ask, Finish
from .settings import Settings
from .wire import Json

LETTERS = range(ord("a"), ord("z") + 1)


def fingerprint(settings: Settings) -> str:
    """Return `system_fingerprint`, which gives tensor and data parallelism away."""
    parts = [f"vllm-{settings.version}"]
    if settings.tensor_parallel > 1:
        parts.append(f"tp{settings.tensor_parallel}")
    if settings.engines > 1:
        parts.append(f"dp{settings.engines}")
    identity = f"{parts} {settings.model} {settings.max_model_len} {settings.block_size}"
    return "-".join([*parts, hashlib.sha256(identity.encode()).hexdigest()[:8]])


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete answer to one request, to be sent in chunks or as a whole."""

    ask: Ask
    tokens: tuple[int, ...]
    finish: Finish
    id: str
    created: int
    model: str
    fingerprint: str

    @classmethod
    def to(cls, ask: Ask, settings: Settings) -> Self:
        """Make up tokens that depend on nothing but the seed and the prompt."""
        dice = random.Random(f"{settings.seed}:{ask.prompt}")  # noqa: S311
        return cls(
            ask=ask,
            tokens=tuple(dice.choices(LETTERS, k=ask.count)),
            finish=ask.finish,
            id=f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=settings.model,
            fingerprint=fingerprint(settings),
        )

    def cut(self, count: int, finish: Finish) -> Self:
        """Return the same answer ending early."""
        return replace(self, tokens=self.tokens[:count], finish=finish)

    def opening(self) -> list[Json]:
        """Return what precedes the first token: chat's role chunk, which carries no token."""
        if not self.ask.chat:
            return []
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._chunk([choice], prompt_token_ids=self._prompt_ids())
        return [chunk | self._running_usage(0)]

    def chunk(self, start: int, stop: int) -> Json:
        """Return the chunk with the tokens from `start` to `stop`."""
        last = stop == len(self.tokens)
        choice: Json = {"index": 0, **self._content(start, stop), "logprobs": None}
        choice |= {"finish_reason": self.finish if last else None, "stop_reason": None}
        if not self.ask.chat:
            choice["prompt_token_ids"] = self._prompt_ids() if start == 0 else None
        choice["token_ids"] = self._ids(start, stop)
        chunk = self._chunk([choice])
        if last and not self.ask.usage:
            chunk["system_fingerprint"] = self.fingerprint
        return chunk | self._running_usage(stop)

    def closing(self) -> list[Json]:
        """Return the usage chunk, which has no choices, if it was asked for."""
        if not self.ask.usage:
            return []
        usage = self._usage(len(self.tokens))
        return [self._chunk([], system_fingerprint=self.fingerprint, usage=usage)]

    def whole(self) -> Json:
        """Return the answer as one object."""
        count = len(self.tokens)
        choice: Json = {"index": 0, "logprobs": None, "finish_reason": self.finish}
        choice |= {"stop_reason": None, "token_ids": self._ids(0, count)}
        body: Json = {"prompt_token_ids": self._prompt_ids()} if self.ask.chat else {}
        if self.ask.chat:
            message = {"role": "assistant", "content": self._text(0, count), "tool_calls": []}
            choice["message"] = message
        else:
            choice |= {"text": self._text(0, count), "prompt_token_ids": self._prompt_ids()}
        details = {"prompt_tokens_details": None, "completion_tokens_details": None}
        body |= {"system_fingerprint": self.fingerprint, "usage": self._usage(count) | details}
        return self._envelope("chat.completion", [choice]) | body

    def _envelope(self, chat_object: str, choices: list[Json]) -> Json:
        kind = chat_object if self.ask.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created}
        return {**head, "model": self.model, "choices": choices}

    def _chunk(self, choices: list[Json], **more: object) -> Json:
        return self._envelope("chat.completion.chunk", choices) | more

    def _content(self, start: int, stop: int) -> Json:
        text = self._text(start, stop)
        return {"delta": {"content": text}} if self.ask.chat else {"text": text}

    def _text(self, start: int, stop: int) -> str:
        return bytes(self.tokens[start:stop]).decode()

    def _ids(self, start: int, stop: int) -> list[int] | None:
        return list(self.tokens[start:stop]) if self.ask.token_ids else None

    def _prompt_ids(self) -> list[int] | None:
        return list(self.ask.prompt) if self.ask.token_ids else None

    def _usage(self, count: int) -> Json:
        asked = len(self.ask.prompt)
        return {
            "prompt_tokens": asked,
            "total_tokens": asked + count,
            "completion_tokens": count,
        }

    def _running_usage(self, count: int) -> Json:
        return {"usage": self._usage(count)} if self.ask.continuous_usage else {}
