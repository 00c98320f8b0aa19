"""What is sent: prompts of an exact number of token ids, which no prefix cache has seen."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.model import Tokens

_NONCE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, encoded: its body, and the number of tokens that must come back."""

    body: bytes
    input_tokens: int
    output_tokens: int


def prompts(workload: Workload, model: str, vocab: int) -> Iterator[Prompt]:
    """Prompts of the workload without end: the same lengths each time, with fresh first tokens."""
    lengths = random.Random(workload.seed)  # noqa: S311 - lengths, not secrets
    fresh = random.Random()  # noqa: S311 - only has to differ between runs
    # The ends of a vocabulary hold control tokens.
    low, high = vocab // 32, max(vocab // 32 + 1, vocab - vocab // 8)
    while True:
        count = _draw(workload.input_tokens, lengths)
        output = _draw(workload.output_tokens, lengths)
        nonce = min(count, _NONCE_TOKENS)
        ids = [fresh.randrange(low, high) for _ in range(nonce)]
        ids += [lengths.randrange(low, high) for _ in range(count - nonce)]
        yield Prompt(_body(model, ids, output), count, output)


def _draw(tokens: Tokens, source: random.Random) -> int:
    if tokens.fixed is not None:
        return tokens.fixed
    if tokens.uniform is not None:
        return source.randint(*tokens.uniform)
    assert tokens.lognormal is not None  # noqa: S101 - one of the three is set
    value = math.exp(source.gauss(tokens.lognormal.mean, tokens.lognormal.sigma))
    return max(tokens.least, min(tokens.most, round(value)))


def _body(model: str, ids: list[int], output: int) -> bytes:
    request = {
        "model": model,
        "prompt": ids,
        "max_tokens": output,
        "min_tokens": output,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_token_ids": True,
    }
    return json.dumps(request, separators=(",", ":")).encode()
