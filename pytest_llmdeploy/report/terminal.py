"""The checklist on the terminal, and the line that says what is going on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby, zip_longest
from operator import itemgetter

import pytest
from tabulate import tabulate
from wcwidth import clip, ljust, wcswidth, wrap

from pytest_llmdeploy.evidence import Row, Status, Verdict
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.letters import clean, encodable
from pytest_llmdeploy.secrets import redact
from pytest_llmdeploy.units import show

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
# What did not pass, as it is repeated below the table.
_WORST_FIRST = (
    Status.FAIL,
    Status.ERROR,
    Status.INVALID,
    Status.INCONCLUSIVE,
    Status.SKIPPED,
)
# What tabulate's "simple" format needs beside the cells: two blanks between four columns, and two
# beside each header.
_BETWEEN = 2 * (len(_HEADERS) - 1)
_BESIDE_HEADER = 2
_NARROWEST = max(map(len, _HEADERS)) + _BESIDE_HEADER
# Below this, columns are narrower than their headers: a row is a sentence.
_TABLE_FROM = len(_HEADERS) * _NARROWEST + _BETWEEN + 1
_LINE_ONLY = -2
_DECIDED = {"PASS", "FAIL"}


def write_checklist(
    reporter: pytest.TerminalReporter, checklist: Checklist, seconds: float
) -> None:
    """The table, what to change, and the verdict in one line; with -qq that line alone."""
    reporter.ensure_newline()
    verbosity = reporter.config.get_verbosity()
    if verbosity > _LINE_ONLY:
        reporter.section(f"checklist: {shown(reporter, checklist.name)}")
        width = reporter._tw.fullwidth  # noqa: SLF001 - pytest has no public name for it
        for line, row in body_lines(_legible(reporter, checklist), width, verbosity):
            markup = _MARKUP[row.status] if row else {}
            reporter.write_line(encodable(line, encoding(reporter)), **markup)
    closing = shown(reporter, closing_line(checklist, seconds))
    reporter.write_line(closing, **_VERDICT_MARKUP[checklist.verdict])


def shown(reporter: pytest.TerminalReporter, text: str) -> str:
    """The text in one line, as this terminal can show it."""
    return encodable(clean(text), encoding(reporter))


def encoding(reporter: pytest.TerminalReporter) -> str:
    file = reporter._tw._file  # noqa: SLF001 - as above
    return getattr(file, "encoding", None) or "utf-8"


def _legible(reporter: pytest.TerminalReporter, checklist: Checklist) -> Checklist:
    """The checklist with what the terminal can't show replaced, before anything is aligned."""
    text = partial(shown, reporter)
    rows = [
        replace(
            row,
            item=text(row.item),
            requirement=text(row.requirement),
            result=text(row.result),
            hint=text(row.hint),
        )
        for row in checklist.rows
    ]
    broken = "\n".join(map(text, checklist.broken.splitlines()))
    return replace(checklist, rows=rows, broken=broken, repairs=[*map(text, checklist.repairs)])


def body_lines(
    checklist: Checklist, width: int, verbosity: int = 0
) -> Iterator[tuple[str, Row | None]]:
    """What stands between the heading and the verdict: lines, each with the row it belongs to."""
    if checklist.broken:
        yield checklist.broken, None
    as_rows = table_lines if width >= _TABLE_FROM else _sentences
    yield from as_rows(checklist.rows, width, evidence=verbosity > 0)
    yield from _changes(checklist, width)
    yield from ((line, None) for line in _since(checklist, width))
    for line in _introspection(checklist):
        yield line, None


def alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that did not pass, worst first; those that have one cause together."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for status in _WORST_FIRST:
        for row in rows:
            if row.status is status:
                # A server that is not there is one fault, however many rows it has.
                own = row.id if row.status.is_decided else ""
                found.setdefault((row.status, row.result, own), []).append(row)
    return list(found.values())


def _changes(checklist: Checklist, width: int) -> Iterator[tuple[str, Row | None]]:
    """What did not pass, worst first, with what to do about it; then what mends the plan."""
    found = alike(checklist.rows)
    if found:
        yield "", None
        yield "What to change, worst first:", None
    for rows in found:
        first = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        required = f", required: {first.requirement}" if first.status.is_decided else ""
        text = f"{first.status}  {first.item}{more}: {first.result}{required}"
        yield from ((line, first) for line in _filled(text, width, "  "))
        for hint in dict.fromkeys(row.hint for row in rows if row.hint):
            yield from ((line, None) for line in _filled(f"→ {hint}", width, "    "))
    for text in checklist.repairs:
        yield from ((line, None) for line in _filled(f"→ {text}", width, "  "))


def _filled(text: str, width: int, indent: str) -> list[str]:
    return wrap(text, width - 1, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _since(checklist: Checklist, width: int) -> Iterator[str]:
    """What has changed since the baseline."""
    if checklist.changes is None:
        return
    from pytest_llmdeploy.report.comparison import lines  # noqa: PLC0415 - only with a baseline

    found = [clean(line) for line in lines(checklist.changes)]
    yield ""
    yield "Changed since the baseline:" if found else "Nothing changed since the baseline."
    for line in found:
        yield from _filled(line, width, "  ")


def _introspection(checklist: Checklist) -> Iterator[str]:
    """What the server was launched with besides the spec's own, and whether it was of use."""
    found = (checklist.facts.get("server") or {}).get("introspection")
    if found:
        yield f"added by --deploy-introspect: {' '.join(found['added'])}"
        if found["problem"]:
            yield f"--deploy-introspect: {found['problem']}"


def by_family(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each family together, in the order in which the families appear."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    return list(families.values())


def table_lines(
    rows: Sequence[Row], width: int, *, evidence: bool = False
) -> Iterator[tuple[str, Row | None]]:
    """The lines of the table, each with the row that it belongs to; no wider than `width`. A blank
    line is between families; `evidence` adds what each row rests on.
    """
    if not rows:
        return
    families = by_family(rows)
    ordered = [row for family in families for row in family]
    cells = [(row.item, row.requirement, row.result, str(row.status)) for row in ordered]
    limits = _column_limits(cells, width - 1)
    flat: list[tuple[str, ...]] = []
    owners: list[int] = []
    for number, row in enumerate(cells):
        columns = [
            wrap(clean(cell), limit) or [""] for cell, limit in zip(row, limits, strict=True)
        ]
        for parts in zip_longest(*columns, fillvalue=""):
            flat.append(parts)
            owners.append(number)
    text = tabulate(flat, headers=_HEADERS, tablefmt="simple", disable_numparse=True)
    head, rule, *lines = text.split("\n")
    yield head, None
    yield rule, None
    firsts = {id(family[0]) for family in families[1:]}
    for number, group in groupby(zip(owners, lines, strict=True), key=itemgetter(0)):
        owner = ordered[number]
        if id(owner) in firsts:
            yield "", None
            firsts.remove(id(owner))
        yield from ((line.rstrip(), owner) for _, line in group)
        if evidence and (told := evidence_of(owner)):
            yield from ((line, None) for line in _filled(told, width, "    "))


def _sentences(
    rows: Sequence[Row], width: int, *, evidence: bool = False
) -> Iterator[tuple[str, Row | None]]:
    """The rows where there is no room for columns."""
    for number, family in enumerate(by_family(rows)):
        if number:
            yield "", None
        for row in family:
            required = f", required: {row.requirement}" if row.requirement else ""
            text = clean(f"{row.status}  {row.item}: {row.result}{required}")
            yield from ((line, row) for line in _filled(text, width, ""))
            if evidence and (told := evidence_of(row)):
                yield from ((line, None) for line in _filled(told, width, "    "))


def evidence_of(row: Row) -> str:
    """What a row rests on: where it was read, of how many, the figures, and what is left."""
    source, n = row.evidence.get("source"), row.evidence.get("n")
    figures = {"measured": row.measured, "bound": row.bound, "limit": row.limit}
    parts = [f"read: {source}"] if source else []
    parts += [f"n {n:,}"] if isinstance(n, int) else []
    parts += [f"{name} {show(at, row.unit)}" for name, at in figures.items() if at is not None]
    parts += [f"margin {show(row.margin, 'fraction')}"] if row.margin is not None else []
    return clean("; ".join(parts))


def _column_limits(cells: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """How wide each column may be: the widest gives way until the table fits."""
    limits = [
        max(len(header) + _BESIDE_HEADER, *(wcswidth(clean(row[index])) for row in cells))
        for index, header in enumerate(_HEADERS)
    ]
    while sum(limits) + _BETWEEN > width and max(limits) > _NARROWEST:
        limits[limits.index(max(limits))] -= 1
    return limits


def closing_line(checklist: Checklist, seconds: float) -> str:
    """Verdict, counts, what was not checked, and where the time went."""
    line = f"{checklist.verdict}: {counts(checklist)} in {duration(seconds)}"
    if checklist.seconds:
        rest = max(0.0, seconds - sum(checklist.seconds.values()))
        split = [f"{name} {duration(spent)}" for name, spent in checklist.seconds.items()]
        line += f" ({', '.join([*split, f'the rest {duration(rest)}'])})"
    return line


def counts(checklist: Checklist) -> str:
    """How many rows became what, and how many there are not."""
    parts = [text for status in _COUNTED_AS if (text := _counted(checklist, status))]
    if checklist.not_run:
        parts.append(f"{len(checklist.not_run)} not run")
    if checklist.left_out:
        parts.append(f"{len(checklist.left_out)} live checks left out")
    return ", ".join(parts) or "nothing was checked"


def _counted(checklist: Checklist, status: Status) -> str:
    items = [row.item for row in checklist.rows if row.status is status]
    if not items:
        return ""
    names = f" ({', '.join(items)})" if status is Status.WAIVED else ""
    return f"{len(items)} {_COUNTED_AS[status]}{names}"


def duration(seconds: float) -> str:
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
            self._show(self.reporter, shown(self.reporter, redact(text)))

    def keep(self, text: str) -> None:
        """Says something that stays, in a line of its own."""
        if self.reporter is None or self.config.get_verbosity() < 0:
            return
        self.clear()
        self.reporter.ensure_newline()
        self.reporter.write_line(shown(self.reporter, text))

    def _show(self, reporter: pytest.TerminalReporter, text: str) -> None:
        if reporter.isatty:
            if not self._shown:
                reporter.ensure_newline()
            width = reporter._tw.fullwidth - 1  # noqa: SLF001 - as above
            reporter.rewrite(ljust(clip(text, 0, width), width))
            self._shown = text
            return
        # A log is for stages: "server   starting, 3 s   …" is one as long as it lasts, and traffic
        # one until something else is decided.
        first, second, *others = [*text.split(), "", ""]
        decided = [f"{at}:{word}" for at, word in enumerate(others) if word in _DECIDED]
        stage = " ".join([first, second.rstrip(","), *decided])
        if stage != self._shown:
            reporter.ensure_newline()
            reporter.write_line(text)
            self._shown = stage

    def clear(self) -> None:
        """Leaves the line free for what comes next."""
        if self._shown and self.reporter is not None and self.reporter.isatty:
            self.reporter.rewrite("", erase=True)
            self._shown = ""
