"""What is wrong with a spec, said so that it can be mended: where, what was found, what may be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

KeyPath = tuple[str | int, ...]
# Of each end.
_SHOWN = 300
# Of a value; a text that is longer is no word that somebody mistyped.
_FOUND = 120
_CLOSE = 0.6


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a spec file; `line` counts from 1."""

    path: Path
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        parts = (f"{self.path}:{self.line}", self.key, self.message)
        return ": ".join(_short(part) for part in parts if part)


def _short(text: str) -> str:
    """As much as a person reads: what is found in a file may be as long as that."""
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} … {text[-_SHOWN:]}"


class FaultError(ValueError):
    """A fault that a record finds in itself; `key` is where, seen from the record."""

    def __init__(self, key: KeyPath, message: str) -> None:
        super().__init__(message)
        self.key = key


class SpecError(Exception):
    """A file that is not a valid spec, with every problem found in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def dotted(key: KeyPath) -> str:
    """The key path as people write it: `workloads[0].require.tpot`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def written(value: object) -> str:
    """A value as a spec file would have it, as far as a person reads it."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _FOUND else f"{text[:_FOUND]} …"


def nearest_file(path: Path) -> str:
    """The tail of an error about a file that is not there: one beside it with such a name and the
    same suffix; empty where there is none.
    """
    try:
        beside = [one for one in path.parent.iterdir() if one.suffix == path.suffix]
    except (OSError, ValueError):
        return ""
    stems = {one.stem: one.name for one in beside}
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=_CLOSE)
    return f": did you mean {stems[close[0]]!r}?" if close else ""


def nearest(word: str, known: Iterable[str], shown: int = 12) -> str:
    """The tail of an error about an unknown word: the closest known one, or those that exist."""
    words = sorted(known)
    if found := closest(word, words):
        return found
    listed = ", ".join(words[:shown])
    return f"known are: {listed}" + (", …" if len(words) > shown else "")


def closest(word: str, words: Iterable[str]) -> str:
    """A question for the known word that may be meant; empty when none is close."""
    by_fold = {candidate.casefold(): candidate for candidate in words}
    begun = [fold for fold in by_fold if word and fold.startswith(word.casefold())]
    close = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=_CLOSE)
    if close := begun if len(begun) == 1 else close:
        return f"did you mean {by_fold[close[0]]!r}?"
    return ""
