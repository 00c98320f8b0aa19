"""Secrets in what is shown: the values of this environment, and what looks like a token.

Every text that leaves a run (a row, a report, a line on the terminal or of a server's log) goes
through `redact`. The supervisor has this file without its package: it needs the standard library
alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"
# Shorter values are words that occur by themselves.
_SHORTEST = 8
# Not TOKENIZERS_PARALLELISM, nor a number of TOKENS.
_NAME = re.compile(r"KEY|TOKEN(?!IZ|S)|SECRET|PASSWO?R?D|CREDENTIAL")
_TOKEN = re.compile(
    r"""
      \bhf_[A-Za-z0-9]{16,}
    | (?<![\w-])sk-[\w-]{16,}
    | (?<=://)[^\s/@'"<>]+(?=@)                          # http://name:password@host
    | (?i:(?<=bearer\ ))[\w.~+/=-]{8,}
    | (?i:(?<=authorization:\ basic\ ))[\w+/=-]+
    | (?<=--api-key[=\ ])[^\s'"]+ | (?<=--hf-token[=\ ])[^\s'"]+
    | (?<='api_key':\ \[')[^']+ | (?<='hf_token':\ ')[^']+  # as older vLLMs print their arguments
    """,
    re.VERBOSE,
)
# Variables that a spec takes from the environment, whatever they are called.
_taken: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(_NAME.search(name.upper()))


def keep(name: str) -> None:
    """The value of the variable `name` is shown nowhere from now on."""
    _taken.add(name)


def kept() -> list[str]:
    """The variables whose values are shown nowhere."""
    return sorted(_taken)


def redact(text: str) -> str:
    """The text without secrets."""
    return _without(text, _values())


def redacted(data: Any) -> Any:
    """JSON-like data without secrets in its texts; keys are as they were."""
    return _redacted(data, _values())


def _redacted(data: Any, values: Iterable[str]) -> Any:
    match data:
        case str():
            return _without(data, values)
        case Mapping():
            return {key: _redacted(value, values) for key, value in data.items()}
        case list() | tuple():
            return type(data)(_redacted(value, values) for value in data)
    return data


def _without(text: str, values: Iterable[str]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, MASK)
    return _TOKEN.sub(MASK, text)


def _values() -> list[str]:
    """The secrets, as they are and as they are written in Python, JSON and URLs: the longest first,
    for one may be a part of another.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        if name in _taken or is_secret(name):
            # Of a key in several lines, a log has each in a line of its own.
            lines = (line.strip() for line in value.splitlines())
            for line in (line for line in lines if len(line) >= _SHORTEST):
                found |= {line, repr(line)[1:-1], json.dumps(line)[1:-1], quote(line, safe="")}
    return sorted(found, key=len, reverse=True)
