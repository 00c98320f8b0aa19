"""Why a server did not start, or died: one sentence, the decisive log line, what to change.

The causes that are known are in `causes.json`, by name and the most telling first. `fatal` are
those after whose line no server recovers, though its processes may go on for long; a `consequence`
follows from an error that stands above it in the log, if there is one.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ROOT = re.compile(r"\b\w*(?:Error|Exception)\b(?:: |$)|Value error,|: error: ")
# What is printed when something else has already said what is wrong.
_GENERIC = re.compile(
    r"[Ss]ee root cause above|[Ss]ee stack trace|Traceback|visit https://errors\.pydantic"
    r"|EngineDeadError|Worker failed with error|WorkerProc initialization failed"
    r"|CancelledError|Connection (?:closed|reset) by peer"
)
# What was logged below an error ended nothing: vLLM goes on after a warning in the same words. But
# for the end of a process. PyTorch's own begin with "[W1128".
_HARMLESS = re.compile(
    r"(?:\([^)]*\)\s*)*(?:(?:DEBUG|INFO|WARNING)\b|\[[IW]\d{4} )(?!.* unexpectedly\b)"
)
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)*(?:(?:ERROR|INFO|WARNING) [\d:. -]+\[[^\]]*\]\s*)?")
_FRAME = re.compile(r'(?P<before>.*?)  File "[^"]*", line \d+')
_SWEPT = re.compile(rf"died unexpectedly \(exit code: -{signal.SIGTERM.value}\)")
# What pydantic adds to a message.
_INPUT = re.compile(r" \[type=\w+, input_value=.*")
_LONGEST = 300
_KILLED = "the kernel's out-of-memory killer does that: see dmesg"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`line` is the decisive line of the log, `hint` what to change; either may be empty. `name` is
    that of a known cause.
    """

    cause: str
    line: str = ""
    hint: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.line}" if self.line else self.cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One entry of the catalogue."""

    pattern: re.Pattern[str]
    cause: str
    hint: str
    fatal: bool = False
    consequence: bool = False


def diagnose(log: str, returncode: int | None) -> Diagnosis:
    """What the log and the exit code (None: still running) say about a server that failed."""
    lines = _lines(log)
    if returncode is not None and returncode < 0:
        # What SIGTERM ended was swept after the server.
        lines = [line for line in lines if not _SWEPT.search(line)]
    for name, cause in known_causes().items():
        for number, line in enumerate(lines):
            if cause.pattern.search(line):
                above = next(_roots(lines[:number]), line) if cause.consequence else line
                return Diagnosis(cause.cause, _trimmed(above), cause.hint, name)
    # What was written last says nothing of a signal.
    last = "" if returncode and returncode < 0 else next(filter(None, reversed(lines)), "")
    line = next(_roots(lines), last)
    hint = _KILLED if returncode == -signal.SIGKILL else "see the server's log"
    return Diagnosis(_ended(returncode), _trimmed(line), hint)


def is_hopeless(log: str) -> bool:
    """Whether a server that writes this can't become ready any more, though it still runs."""
    fatal = [cause.pattern for cause in known_causes().values() if cause.fatal]
    return any(pattern.search(line) for line in _lines(log) for pattern in fatal)


@cache
def known_causes() -> Mapping[str, Cause]:
    raw = json.loads(Path(__file__).with_name("causes.json").read_text(encoding="utf-8"))
    return {
        name: Cause(**{**entry, "pattern": re.compile(entry["pattern"])})
        for name, entry in raw["causes"].items()
    }


def _lines(log: str) -> Sequence[str]:
    """The lines that may say why something failed."""
    lines = (_ANSI.sub("", line).rstrip() for line in log.splitlines())
    return [line for line in _unquoted(lines) if not _HARMLESS.match(line)]


def _unquoted(lines: Iterable[str]) -> Iterator[str]:
    """Without the source that tracebacks quote: what an error says is written there as well."""
    source = None
    for line in lines:
        if frame := _FRAME.match(line):
            source = frame["before"] + 4 * " "
        elif source is not None and line.startswith(source):
            continue
        else:
            source = None
        yield line


def _roots(lines: Sequence[str]) -> Iterator[str]:
    """The lines that name an error, and not only say that there was one."""
    return (line for line in lines if _ROOT.search(line) and not _GENERIC.search(line))


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "the server does not answer"
    if returncode < 0:
        return f"the server was ended by {signal.Signals(-returncode).name}"
    return f"the server ended with exit code {returncode}"


def _trimmed(line: str) -> str:
    text = _INPUT.sub("", _PREFIX.sub("", line)).strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
