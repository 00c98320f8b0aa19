"""YAML to plain data that remembers its lines.

A spec is small and is reviewed by people: duplicate keys, aliases and depth are refused, and
scalars mean what they say (YAML 1.1's `on`, `012` and `1:30` are texts here).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pytest_llmdeploy.spec.bounded import read_bounded
from pytest_llmdeploy.spec.errors import KeyPath, Problem, SpecError, dotted, nearest_file
from pytest_llmdeploy.spec.source import Place, Source

MAX_BYTES = 1_000_000
MAX_DEPTH = 24
MAX_VALUES = 20_000
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The extension's own names for what it makes: a test that runs pytest within pytest has `yaml`
# imported anew, while the extension keeps to the classes of before.
_made: Any = getattr(yaml, "_yaml", yaml)
# Longer numbers than these are texts, and no key takes them.
_INT = re.compile(r"[+-]?(?:0|[1-9](?:_?\d){0,17})", re.ASCII)
_FLOAT = re.compile(
    r"[+-]?(?:0|[1-9]\d{0,17})?(?:\.\d+|(?<=\d)(?=[eE]))(?:[eE][+-]?\d{1,2})?", re.ASCII
)
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Document:
    """The data of a YAML file, and the place of every key path in it; `size` is in bytes."""

    data: Any
    source: Source
    size: int = 0


class _Reader:
    """Builds the data from YAML's events, so that nothing is built before it is checked."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))

    def document(self) -> Any:
        """The one document of the text; an empty text is an empty mapping."""
        data: Any = {}
        for event in self.events:
            if isinstance(event, _made.DocumentStartEvent):
                if self.lines:
                    raise self.error(event, (), "one file holds one document")
                data = self.value(next(self.events), ())
        return data

    def value(self, event: Any, key: KeyPath, depth: int = 0) -> Any:
        self.lines.setdefault(key, _line(event))
        if len(self.lines) > MAX_VALUES:
            raise self.error(event, (), f"holds more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise self.error(event, (), _TOO_DEEP)
        if isinstance(event, _made.AliasEvent) or event.anchor is not None:
            raise self.error(event, key, "YAML aliases are not allowed: write the value out")
        if event.tag is not None:
            raise self.error(event, key, f"the YAML tag {event.tag} is not allowed")
        match event:
            case _made.MappingStartEvent():
                return self.mapping(key, depth)
            case _made.SequenceStartEvent():
                return self.sequence(key, depth)
        if "\0" in event.value:
            # No file, variable or argument can hold it.
            raise self.error(event, key, "holds a NUL character")
        return _scalar(event)

    def sequence(self, key: KeyPath, depth: int) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self.events), _made.SequenceEndEvent):
            result.append(self.value(event, (*key, len(result)), depth + 1))
        return result

    def mapping(self, key: KeyPath, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self.events), _made.MappingEndEvent):
            if not isinstance(event, _made.ScalarEvent) or "\0" in event.value:
                raise self.error(event, key, "a key must be a word")
            path = (*key, event.value)
            if event.value in result:
                first = self.lines[path]
                raise self.error(event, path, f"this key is given twice, first in line {first}")
            self.lines[path] = _line(event)
            result[event.value] = self.value(next(self.events), path, depth + 1)
        return result

    def error(self, event: Any, key: KeyPath, message: str) -> SpecError:
        return SpecError([Problem(self.path, _line(event), dotted(key), message)])


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1


def _scalar(event: Any) -> Any:
    text = event.value
    # Only plain scalars are resolved; quoted and block ones are texts.
    if not event.implicit[0]:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_document(path: Path) -> Document:
    """The document in `path`.

    Raises:
        SpecError: when the file can't be read, is not YAML, or uses what specs may not.
    """
    try:
        raw = read_bounded(path, MAX_BYTES)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}{nearest_file(path)}"
        raise SpecError([Problem(path, 1, "", reason)]) from None
    if len(raw) > MAX_BYTES:
        raise SpecError([Problem(path, 1, "", f"is larger than {MAX_BYTES:,} bytes")])
    try:
        return _parse(path, raw.decode("utf-8"), len(raw))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError([Problem(path, line, "", "is not UTF-8 text")]) from None


def _parse(path: Path, text: str, size: int) -> Document:
    reader = _Reader(path, text)
    try:
        data = reader.document()
    except _made.YAMLError as error:
        raise SpecError([_refusal(path, error)]) from None
    places = {key: Place(path, line) for key, line in reader.lines.items()}
    return Document(data, Source(path, places, (path,)), size)


def _refusal(path: Path, error: Any) -> Problem:
    """What the parser says, at the line where it says so; what it can't decode is in none."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    # Newer versions of libyaml give up by themselves, at a depth of their own.
    reason = _TOO_DEEP if "nesting depth" in said else f"is not YAML: {said}"
    return Problem(path, mark.line + 1 if mark else 1, "", reason)
