"""Prompts from a file: JSONL, each line `{"prompt": text or [ids], "output_tokens": n}`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import msgspec

from pytest_llmdeploy.spec.bounded import read_bounded
from pytest_llmdeploy.spec.errors import nearest_file

MAX_BYTES = 32 * 1024**2
MAX_PROMPTS = 100_000
_MOST_SHOWN = 3
# What a text of unknown length is planned with; English prose has a few more.
_BYTES_PER_TOKEN = 4

_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Count = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Ids = Annotated[list[_Id], msgspec.Meta(min_length=1)]


class DatasetError(ValueError):
    """A file that is no dataset; the text says where, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt as JSON: a text, or a list of token ids. `input_tokens` is None where it is not
    known yet.
    """

    line: int
    prompt: bytes
    input_tokens: int | None
    output_tokens: int | None

    @property
    def is_text(self) -> bool:
        return self.prompt.startswith(b'"')

    @property
    def text(self) -> str:
        return msgspec.json.decode(self.prompt, type=str)

    @property
    def ids(self) -> list[int]:
        return msgspec.json.decode(self.prompt, type=list[int])

    @property
    def planned_tokens(self) -> int:
        """The number of tokens, or an estimate of it."""
        return self.input_tokens or -(-len(self.prompt) // _BYTES_PER_TOKEN)


@dataclass(frozen=True)
class Dataset:
    """The prompts of a file, and what of their lengths is known."""

    path: Path
    entries: Sequence[Entry]

    @cached_property
    def shortest(self) -> int:
        """The shortest prompt of a known length; endless when none is known."""
        return min((e.input_tokens for e in self.entries if e.input_tokens), default=sys.maxsize)

    @cached_property
    def longest(self) -> int:
        """The longest prompt of a known length."""
        return max((e.input_tokens or 1 for e in self.entries), default=1)

    @cached_property
    def longest_with_output(self) -> int:
        return max(
            ((e.input_tokens or 1) + (e.output_tokens or 1) for e in self.entries), default=1
        )

    @cached_property
    def mean_input(self) -> float:
        return fmean(entry.planned_tokens for entry in self.entries)

    @cached_property
    def mean_output(self) -> float:
        return fmean(entry.output_tokens or 1 for entry in self.entries)

    @cached_property
    def says_outputs(self) -> bool:
        """Whether every line has its `output_tokens`."""
        return all(entry.output_tokens for entry in self.entries)

    @cached_property
    def shared_ids(self) -> int | None:
        """With how many ids all prompts begin; None while some are texts."""
        if any(entry.is_text for entry in self.entries):
            return None
        lists = [entry.ids for entry in self.entries]
        # What the first and the last in order have in common, all have.
        pairs = enumerate(zip(min(lists), max(lists), strict=False))
        return next((place for place, (a, b) in pairs if a != b), len(min(lists, key=len)))

    def order(self, seed: int) -> Sequence[int]:
        """All places in the order in which they are sent: a file that is sorted by length is not
        sent by length.
        """
        places = list(range(len(self.entries)))
        random.Random(seed).shuffle(places)  # noqa: S311 - an order, not a secret
        return places


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: _Text | _Ids
    output_tokens: _Count | None = None
    input_tokens: _Count | None = None


_decode = msgspec.json.Decoder(_Line).decode


def read_dataset(path: Path) -> Dataset:
    """The dataset in `path`.

    Raises:
        DatasetError: with file and line of the first few faults.
    """
    try:
        raw = read_bounded(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be read: {reason}{nearest_file(path)}") from None
    if len(raw) > MAX_BYTES:
        raise DatasetError(f"{path}: is larger than {MAX_BYTES:,} bytes")
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DatasetError(f"{path}: holds no prompt")
    if len(numbered) > MAX_PROMPTS:
        raise DatasetError(f"{path}: holds more than {MAX_PROMPTS:,} prompts")
    return Dataset(path, tuple(_entries(path, numbered)))


def _entries(path: Path, lines: Sequence[tuple[int, bytes]]) -> Iterator[Entry]:
    faults: list[str] = []
    for number, line in lines:
        try:
            yield _entry(number, line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, DatasetError) as error:
            faults.append(f"{path}:{number}: {error}")
        if len(faults) == _MOST_SHOWN:
            break
    if faults:
        raise DatasetError("; ".join(faults))


def _entry(number: int, line: bytes) -> Entry:
    read = _decode(line)
    count: Any = read.input_tokens
    if isinstance(read.prompt, list):
        if count not in {None, len(read.prompt)}:
            raise DatasetError(f"input_tokens is {count}, the prompt has {len(read.prompt)}")
        count = len(read.prompt)
    return Entry(number, msgspec.json.encode(read.prompt), count, read.output_tokens)
