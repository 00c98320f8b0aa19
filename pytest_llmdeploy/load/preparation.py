"""What only the server's tokenizer knows, asked for before a run: how long texts are."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from typing import Protocol

import msgspec

from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.dataset import Dataset, Entry
from pytest_llmdeploy.spec.tokens import Part, Wording

# Of a longer dataset, those that the seed draws first are sent.
MOST_TEXTS = 5_000
_MOST_SECONDS = 120.0
_AT_ONCE = 8

_OPENING = "Say"
# Words that tokenizers of all kinds know as one token, each with the space before it, and for
# tokenizers without words, letters.
_WORDS = """
the of and to in is was for that on with as by at from his it an were are which this be had or has
first also one their its new after but who not they have her she two been other when all during
there into time may more he years over only some up most out so can about no what year world made
life then now work state part where long well many people used high home old name line under way
house day place great city end country water number small land party white group second music left
right body game book light four five six black school
"""
_FAMILIES = (tuple(f" {word}" for word in _WORDS.split()), tuple(string.ascii_lowercase))
_LEAST_PIECES = 16
_TRIALS = 12


class PreparationError(Exception):
    """A workload that can't be sent to this server as it is declared; the text says why."""


class Tokenizer(Protocol):
    """The ids that a server makes of a text, alone and in its chat template."""

    def text(self, text: str, /) -> Sequence[int]: ...

    def chat(self, text: str, /) -> Sequence[int]: ...


def prepared(workload: Workload, tokenizer: Tokenizer) -> Workload:
    """The workload with every text counted, and for completions as token ids; for a chat, with the
    words of which prompts of an exact length are made. Others are left as they are.

    Raises:
        PreparationError: when what is declared can't be sent to this server.
    """
    is_chat = workload.endpoint == "chat"
    if is_chat and not all(part.input_tokens.data for part in workload.parts):
        workload = workload.with_wording(_wording(workload, tokenizer))
    count = _count_chat if is_chat else _count_text
    parts = [
        _prepared(part, workload.seed, lambda e: count(e, tokenizer)) for part in workload.parts
    ]
    if workload.mix:
        workload = workload.model_copy(update={"mix": tuple(parts)})
    else:
        workload = workload.model_copy(update={"input_tokens": parts[0].input_tokens})
    if fault := workload.prefix_fault:
        raise PreparationError(f"{workload.name}: shared_prefix: {fault}")
    return workload


def _prepared(part: Part, seed: int, count: Callable[[Entry], Entry]) -> Part:
    data = part.input_tokens.data
    if data is None or not any(entry.is_text for entry in data.entries):
        return part
    chosen = [data.entries[place] for place in data.order(seed)[:MOST_TEXTS]]
    deadline = time.monotonic() + _MOST_SECONDS

    def counted(entry: Entry) -> Entry:
        if time.monotonic() > deadline:
            raise PreparationError(f"{data.path}: not tokenized within {_MOST_SECONDS:g} s")
        found = count(entry) if entry.is_text else entry
        if entry.input_tokens not in {None, found.input_tokens}:
            raise PreparationError(
                f"{data.path}:{entry.line}: input_tokens is {entry.input_tokens}, "
                f"the server makes {found.input_tokens} of it"
            )
        return found

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        entries = tuple(threads.map(counted, sorted(chosen, key=lambda entry: entry.line)))
    tokens = part.input_tokens.with_data(Dataset(data.path, entries))
    return part.model_copy(update={"input_tokens": tokens})


def _count_text(entry: Entry, tokenizer: Tokenizer) -> Entry:
    ids = list(tokenizer.text(entry.text))
    return replace(entry, prompt=msgspec.json.encode(ids), input_tokens=len(ids))


def _count_chat(entry: Entry, tokenizer: Tokenizer) -> Entry:
    return replace(entry, input_tokens=len(tokenizer.chat(entry.text)))


def _wording(workload: Workload, tokenizer: Tokenizer) -> Wording:
    """The first family of pieces that add up in the server's chat template."""
    made = [part.input_tokens for part in workload.parts if not part.input_tokens.data]
    for family in _FAMILIES:
        wording = _tried(family, tokenizer, max(tokens.most for tokens in made))
        if wording is None:
            continue
        if fault := _misfit(wording, workload.shared_prefix, min(tokens.least for tokens in made)):
            raise PreparationError(f"{workload.name}: {fault}")
        return wording
    raise PreparationError(
        f"{workload.name}: no words are one token each for this server's tokenizer: "
        "send a dataset instead"
    )


def _misfit(wording: Wording, shared: int, shortest: int) -> str:
    """Why prompts of these lengths can't be made; empty when they can."""
    if shared and shared < wording.before:
        return f"shared_prefix: found {shared}: the chat template begins with {wording.before}"
    least = wording.around + max(0, shared - wording.before)
    if shortest < least:
        prefix = " after the shared prefix" if shared else ""
        return f"input_tokens are as few as {shortest}, a chat of one word{prefix} has {least}"
    return ""


def _tried(family: Sequence[str], tokenizer: Tokenizer, longest: int) -> Wording | None:
    around = len(tokenizer.chat(_OPENING))
    pieces = [p for p in family if len(tokenizer.chat(_OPENING + p + p)) == around + 2]
    if len(pieces) < _LEAST_PIECES:
        return None
    draw = random.Random(0)  # noqa: S311 - a trial, not a secret
    counts = [1, 2, max(1, longest - around), *(draw.randrange(1, 64) for _ in range(_TRIALS))]
    texts = [draw.choices(pieces, k=count) for count in counts]
    tries = [list(tokenizer.chat(_OPENING + "".join(text))) for text in texts]
    if any(len(ids) != around + len(text) for ids, text in zip(tries, texts, strict=True)):
        return None
    first, last = min(tries), max(tries)
    before = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    return Wording(_OPENING, pieces, around, before)
