"""The checklist on the terminal, and the line that says what is going on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import pytest
from tabulate import tabulate

from pytest_llmdeploy.evidence import Row, Status, Verdict
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.secrets import redact

_HEADERS = ("Check", "Requirement", "Result", "Status")
_MARKUP = {
    Status.PASS: {"green": True},
    Status.FAIL: {"red": True, "bold": True},
    Status.ERROR: {"red": True, "bold": True},
    Status.SKIPPED: {"yellow": True},
    Status.WAIVED: {"yellow": True},
    Status.INCONCLUSIVE: {"yellow": True, "bold": True},
    Status.INVALID: {"yellow": True, "bold": True},
}
_VERDICT_MARKUP = {
    Verdict.READY: {"green": True, "bold": True},
    Verdict.PLAN_PASSES: {"green": True, "bold": True},
    Verdict.NOT_READY: {"red": True, "bold": True},
    Verdict.UNDECIDED: {"yellow": True, "bold": True},
}
_COUNTED_AS = {
    Status.FAIL: "failed",
    Status.ERROR: "in error",
    Status.INCONCLUSIVE: "inconclusive",
    Status.INVALID: "invalid",
    Status.SKIPPED: "skipped",
    Status.WAIVED: "waived",
    Status.PASS: "passed",
}
# What tabulate's "simple" format needs beside the cells: two blanks between four columns, and two
# beside each header.
_BETWEEN = 2 * (len(_HEADERS) - 1)
_BESIDE_HEADER = 2
_NARROWEST = max(map(len, _HEADERS)) + _BESIDE_HEADER


def write_checklist(
    reporter: pytest.TerminalReporter, checklist: Checklist, seconds: float
) -> None:
    """The table, what to change, and the verdict in one line."""
    reporter.ensure_newline()
    reporter.section(f"checklist: {checklist.name}")
    if checklist.broken:
        reporter.write_line(checklist.broken)
    width = reporter._tw.fullwidth  # noqa: SLF001 - pytest has no public name for it
    for line, row in table_lines(checklist.rows, width):
        reporter.write_line(line, **(_MARKUP[row.status] if row else {}))
    hints = [f"{r.item}: {r.hint}" for r in checklist.rows if r.hint and not r.status.is_green]
    for text in (*hints, *checklist.repairs):
        indented = textwrap.fill(text, width - 1, initial_indent="  → ", subsequent_indent="    ")
        reporter.write_line(indented)
    for line in _introspection(checklist):
        reporter.write_line(line)
    reporter.write_line(closing_line(checklist, seconds), **_VERDICT_MARKUP[checklist.verdict])


def _introspection(checklist: Checklist) -> Iterator[str]:
    """What the server was launched with besides the spec's own, and whether it was of use."""
    found = (checklist.facts.get("server") or {}).get("introspection")
    if found:
        yield f"added by --deploy-introspect: {' '.join(found['added'])}"
        if found["problem"]:
            yield f"--deploy-introspect: {found['problem']}"


def table_lines(rows: Sequence[Row], width: int) -> Iterator[tuple[str, Row | None]]:
    """The lines of the table, each with the row that it belongs to; no wider than `width`."""
    if not rows:
        return
    cells = [(row.item, row.requirement, row.result, str(row.status)) for row in rows]
    limits = _column_limits(cells, width - 1)
    wrapped = [
        tuple(textwrap.wrap(cell, limit) or [""] for cell, limit in zip(row, limits, strict=True))
        for row in cells
    ]
    flat: list[tuple[str, ...]] = []
    owners: list[Row] = []
    for row, columns in zip(rows, wrapped, strict=True):
        height = max(map(len, columns))
        for index in range(height):
            flat.append(tuple(col[index] if index < len(col) else "" for col in columns))
            owners.append(row)
    text = tabulate(flat, headers=_HEADERS, tablefmt="simple", disable_numparse=True)
    head, rule, *lines = text.split("\n")
    yield head, None
    yield rule, None
    for line, owner in zip(lines, owners, strict=True):
        yield line.rstrip(), owner


def _column_limits(cells: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """How wide each column may be: the widest gives way until the table fits."""
    limits = [
        max(len(header) + _BESIDE_HEADER, *(len(row[index]) for row in cells))
        for index, header in enumerate(_HEADERS)
    ]
    while sum(limits) + _BETWEEN > width and max(limits) > _NARROWEST:
        limits[limits.index(max(limits))] -= 1
    return limits


def closing_line(checklist: Checklist, seconds: float) -> str:
    """Verdict, counts, what was not checked, and where the time went."""
    parts = [text for status in _COUNTED_AS if (text := _counted(checklist, status))]
    if checklist.not_run:
        parts.append(f"{len(checklist.not_run)} not run")
    if checklist.left_out:
        parts.append(f"{len(checklist.left_out)} live checks left out")
    line = f"{checklist.verdict}: {', '.join(parts) or 'nothing was checked'} in {_s(seconds)}"
    if checklist.seconds:
        rest = max(0.0, seconds - sum(checklist.seconds.values()))
        split = [f"{name} {_s(spent)}" for name, spent in checklist.seconds.items()]
        line += f" ({', '.join([*split, f'the rest {_s(rest)}'])})"
    return line


def _counted(checklist: Checklist, status: Status) -> str:
    items = [row.item for row in checklist.rows if row.status is status]
    if not items:
        return ""
    names = f" ({', '.join(items)})" if status is Status.WAIVED else ""
    return f"{len(items)} {_COUNTED_AS[status]}{names}"


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004


@dataclass
class ProgressLine:
    """What is going on, in one line: refreshed in place on a terminal, one line per stage
    elsewhere.
    """

    config: pytest.Config
    _shown: str = field(default="", init=False)

    @cached_property
    def reporter(self) -> pytest.TerminalReporter | None:
        """Known only once every plugin is configured; None on an xdist worker."""
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def __call__(self, text: str) -> None:
        if self.reporter is None or self.config.get_verbosity() < 0:
            return
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            self._show(self.reporter, redact(text))

    def _show(self, reporter: pytest.TerminalReporter, text: str) -> None:
        if reporter.isatty:
            if not self._shown:
                reporter.ensure_newline()
            width = reporter._tw.fullwidth - 1  # noqa: SLF001 - as above
            reporter.rewrite(text[:width].ljust(width))
            self._shown = text
            return
        # A log is for stages: "server   starting, 3 s   …" is one as long as it lasts.
        stage = " ".join(text.split()[:2]).rstrip(",")
        if stage != self._shown:
            reporter.ensure_newline()
            reporter.write_line(text)
            self._shown = stage

    def clear(self) -> None:
        """Leaves the line free for what comes next."""
        if self._shown and self.reporter is not None and self.reporter.isatty:
            self.reporter.rewrite("", erase=True)
            self._shown = ""
