"""Where every key of a spec stands: a spec may be made of several files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pytest_llmdeploy.spec.errors import KeyPath, Problem, dotted


class Place(NamedTuple):
    """A line (from 1) of a file."""

    path: Path
    line: int


@dataclass(frozen=True)
class Source:
    """Where a spec was read: its file, the place of every key path, and all its files, those that
    it extends before it.
    """

    path: Path = Path("<spec>")
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def place(self, key: KeyPath) -> Place:
        """The place of `key`, or of the closest parent that is in a file."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key) or Place(self.path, 1)

    def problem(self, key: KeyPath, message: str) -> Problem:
        """A fault at `key`."""
        return Problem(*self.place(key), dotted(key), message)
