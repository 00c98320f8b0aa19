"""A completion request, checked as vLLM checks it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from .settings import Settings
from .wire import Json, RefusalError

Finish = Literal["length", "stop", "abort"]


def tokenize(text: str) -> list[int]:
    """Return one token per byte, as the byte-level tokenizer of the tiny model does."""
    return list(text.encode())


def prompt_tokens(body: Mapping[str, Any], *, chat: bool) -> list[int]:
    """Return the tokens of `prompt` (a text or token ids) or of the chat `messages`."""
    if chat:
        try:
            turns = [f"<{turn['role']}>{turn['content']}\n" for turn in body["messages"]]
        except (KeyError, TypeError) as error:
            message = "messages: a list of objects with role and content is required"
            raise RefusalError(400, message, "messages") from error
        return tokenize("".join(turns))
    match body.get("prompt"):
        case str(text) if text:
            return tokenize(text)
        case [*ids] if ids and all(type(token) is int for token in ids):
            return ids
    raise RefusalError(400, "prompt: one text or one list of token ids is required", "prompt")


@dataclass(frozen=True, slots=True)
class Ask:
    """A valid completion request."""

    chat: bool
    prompt: tuple[int, ...]
    #: How many tokens the answer will have, and why it ends there.
    count: int
    finish: Finish
    stream: bool
    token_ids: bool
    usage: bool
    continuous_usage: bool

    @classmethod
    def parse(cls, body: Json, settings: Settings, *, chat: bool) -> Self:
        """Check a request in vLLM's order; raises RefusalError."""
        check_model(body, settings)
        prompt = prompt_tokens(body, chat=chat)
        _check_prompt(prompt, body, settings)
        count, finish = _length(body, settings.max_model_len - len(prompt), settings, chat=chat)
        options = body.get("stream_options") or {}
        usage = bool(options.get("include_usage"))
        return cls(
            chat=chat,
            prompt=tuple(prompt),
            count=count,
            finish=finish,
            stream=bool(body.get("stream")),
            token_ids=bool(body.get("return_token_ids")),
            usage=usage,
            continuous_usage=usage and bool(options.get("continuous_usage_stats")),
        )


def check_model(body: Json, settings: Settings) -> None:
    """Refuse a request that is for another model."""
    if (model := body.get("model")) and model != settings.model:
        message = f"The model `{model}` does not exist. Valid aliases: {settings.model}."
        raise RefusalError(404, message, "model")


def _check_prompt(prompt: list[int], body: Json, settings: Settings) -> None:
    limit = settings.max_model_len
    if (count := len(prompt)) > limit:
        # vLLM's tokenizer stops one token past the limit, so of a text it never knows the length.
        qualifier = "" if isinstance(body.get("prompt"), list) else "at least "
        count = limit + 1 if qualifier else count
        message = (
            f"This model's maximum context length is {limit} tokens. However, your prompt "
            f"contains {qualifier}{count} input tokens, which exceeds this limit even without "
            "any output tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={count})"
        )
        raise RefusalError(400, message, "input_tokens")
    for token in prompt:
        if not 0 <= token < settings.vocab_size:
            raise RefusalError(400, f"Token id {token} is out of vocabulary", "prompt")


def _length(body: Json, room: int, settings: Settings, *, chat: bool) -> tuple[int, Finish]:
    asked = body.get("max_completion_tokens") if chat else None
    asked = body.get("max_tokens") if asked is None else asked
    if asked is None:
        asked = room if chat else 16
    limit = min(asked, room)
    if limit < 1:
        raise RefusalError(400, f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    least = body.get("min_tokens") or 0
    if least > limit:
        message = f"min_tokens must be less than or equal to max_tokens={limit}, got {least}."
        raise RefusalError(400, message)
    end = max(least, settings.eos_after)
    if body.get("ignore_eos") or end >= limit:
        return limit, "length"
    return end, "stop"
