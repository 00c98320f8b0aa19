"""The plan as a page of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from tabulate import tabulate

from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.report import plan_tables
from pytest_llmdeploy.report.plan_tables import Table, strategy
from pytest_llmdeploy.spec import Spec

WIDTH = 80
_MOST_ALTERNATIVES = 16
_NAME, _REASON, _REASON_LINES = 23, 28, 3


def plan_page(spec: Spec, found: Plan, ranked: Sequence[Alternative], launch: str) -> str:
    """Everything that the plan knows, section by section."""
    sections = {
        "": _head(spec, found),
        "Violations": _bullets(str(violation) for violation in found.violations),
        "Layout": _table(plan_tables.layout(found)),
        "Memory of a device, by stage": _table(plan_tables.memory(spec, found)),
        "KV cache": plan_tables.kv_cache(spec, found),
        "Prediction": _table(plan_tables.prediction(found), bullets=True),
        "Alternatives": _alternatives(ranked),
        "Launch command": iter(launch.splitlines()),
    }
    text = ""
    for title, lines in sections.items():
        if body := "\n".join(f"  {line}" if title else line for line in lines):
            text += f"\n{title}\n{body}\n" if title else f"{body}\n"
    return text


def _head(spec: Spec, found: Plan) -> Iterator[str]:
    state = "feasible" if found.is_feasible else "NOT FEASIBLE"
    yield f"{spec.name}: {'not known' if found.unknown else state}"
    size = f", {_count(found.parameters)} parameters" if found.parameters else ""
    yield f"{spec.model.id}{size}"
    layout = strategy(spec.parallel)
    yield f"{layout} on {found.devices} of {found.available} × {spec.hardware.device.name}"
    yield from textwrap.wrap(found.unknown, WIDTH)


def _count(number: int) -> str:
    scale, word = (1e9, "billion") if number >= 1e9 else (1e6, "million")  # noqa: PLR2004
    return f"{number / scale:.4g} {word}"


def _bullets(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, WIDTH - 2, initial_indent="- ", subsequent_indent="  ")


def _table(table: Table, *, bullets: bool = False) -> Iterator[str]:
    if table.rows:
        text = tabulate(table.rows, table.headers, tablefmt="simple", disable_numparse=True)
        yield from (line.rstrip() for line in text.splitlines())
    yield from _bullets(iter(table.notes)) if bullets else table.notes


def _alternatives(ranked: Sequence[Alternative]) -> Iterator[str]:
    table = plan_tables.alternatives(ranked, _MOST_ALTERNATIVES)
    rows = [line for row in table.rows for line in _wrapped(*row)]
    notes = [f"{note}: --json lists them" for note in table.notes]
    yield from _table(Table(table.headers, rows, notes))


def _wrapped(place: str, name: str, served: str, reason: str) -> Iterator[tuple[str, ...]]:
    """One line, or more where a cell is too long for its column."""
    reasons = textwrap.wrap(reason, _REASON, max_lines=_REASON_LINES, placeholder=" …")
    yield from zip_longest([place], textwrap.wrap(name, _NAME), [served], reasons, fillvalue="")
