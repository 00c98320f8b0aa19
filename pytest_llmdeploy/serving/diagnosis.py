"""Why a server did not start, or died: one sentence, the decisive log line, what to change."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ROOT = re.compile(r"\b\w*(?:Error|Exception)\b: |Value error,|: error: ")
# What vLLM prints when something else has already said what is wrong.
_GENERIC = re.compile(r"See root cause above|Traceback|visit https://errors\.pydantic")
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)*(?:(?:ERROR|INFO|WARNING) [\d:. -]+\[[^\]]*\]\s*)?")
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`line` is the decisive line of the log, `hint` what to change; either may be empty."""

    cause: str
    line: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.line}" if self.line else self.cause


def diagnose(log: str, returncode: int | None) -> Diagnosis:
    """What the log and the exit code (None: still running) say about a server that failed."""
    lines = [_ANSI.sub("", line).rstrip() for line in log.splitlines()]
    for pattern, cause, hint in _causes():
        for line in lines:
            if pattern.search(line):
                return Diagnosis(cause, _trimmed(line), hint)
    for line in lines:
        if _ROOT.search(line) and not _GENERIC.search(line):
            return Diagnosis(_ended(returncode), _trimmed(line), "see the server's log")
    return Diagnosis(_ended(returncode), _last(lines), "see the server's log")


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "the server does not answer"
    if returncode < 0:
        return f"the server was ended by {signal.Signals(-returncode).name}"
    return f"the server ended with exit code {returncode}"


def _trimmed(line: str) -> str:
    text = _PREFIX.sub("", line).strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _last(lines: Sequence[str]) -> str:
    return next((_trimmed(line) for line in reversed(lines) if line.strip()), "")


@cache
def _causes() -> list[tuple[re.Pattern[str], str, str]]:
    raw = json.loads(Path(__file__).with_name("causes.json").read_text(encoding="utf-8"))
    return [(re.compile(c["pattern"]), c["cause"], c["hint"]) for c in raw["causes"]]
