"""Prompts are exactly as long as asked for, and no cache has seen them."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.load.prompts import Prompt, prompts
from tests.load.workloads import MODEL, VOCAB, workload

SPREAD = {"uniform": [1, 300]}
LONG_TAIL = {"lognormal": {"mean": 4, "sigma": 2, "min": 5, "max": 200}}


def take(count: int = 50, vocab: int = VOCAB, **overrides: Any) -> list[Prompt]:
    return list(islice(prompts(workload(**overrides), MODEL, vocab), count))


def ids(prompt: Prompt) -> list[int]:
    found: list[int] = json.loads(prompt.body)["prompt"]
    return found


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 500), st.integers(2, 200_000))
def test_lengths_are_exact_and_ids_are_in_the_vocabulary(
    tokens: int, output: int, vocab: int
) -> None:
    """What is declared is what is sent and what must come back, whatever the vocabulary."""
    (prompt,) = take(1, vocab, input_tokens=tokens, output_tokens=output)
    body = json.loads(prompt.body)
    assert len(body["prompt"]) == prompt.input_tokens == tokens
    assert body["max_tokens"] == body["min_tokens"] == prompt.output_tokens == output
    assert all(0 <= token < vocab for token in body["prompt"])
    assert body["ignore_eos"] is body["stream"] is True


def test_drawn_lengths_stay_in_their_range_and_use_it() -> None:
    """Both ends of a log-normal that is cut are met, and nothing beyond."""
    drawn = [prompt.output_tokens for prompt in take(300, output_tokens=LONG_TAIL)]
    assert (min(drawn), max(drawn)) == (5, 200)
    drawn = [prompt.input_tokens for prompt in take(300, input_tokens=SPREAD)]
    assert 1 <= min(drawn) < 30
    assert 270 < max(drawn) <= 300


def test_a_second_run_sends_the_same_lengths() -> None:
    """Two runs are comparable."""

    def lengths() -> list[tuple[int, int]]:
        found = take(input_tokens=SPREAD, output_tokens=LONG_TAIL)
        return [(prompt.input_tokens, prompt.output_tokens) for prompt in found]

    assert lengths() == lengths()


def test_no_two_prompts_begin_alike() -> None:
    """Neither within a run nor between runs: a prefix cache has nothing to give."""
    heads = [tuple(ids(prompt)[:8]) for prompt in [*take(200), *take(200)]]
    assert len(set(heads)) == len(heads)
