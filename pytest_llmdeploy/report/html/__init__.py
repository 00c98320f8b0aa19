"""The report as one page of HTML: nothing is loaded, and the only script is its own filter."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pytest_llmdeploy.report import comparison
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.html.drawing import readable
from pytest_llmdeploy.report.html.figures import figures
from pytest_llmdeploy.report.terminal import alike, by_family, counts, duration

_FOLDER = Path(__file__).parent


def render(checklists: Sequence[Checklist]) -> str:
    """The text of the page."""
    style, script = (_FOLDER.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["evidence"] = _evidence
    text = environment.get_template("page.html.jinja").render(
        specs=[_section(index, checklist) for index, checklist in enumerate(checklists)],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return readable(text)


def _section(index: int, checklist: Checklist) -> dict[str, Any]:
    """What the template shows of a spec; ids in the page begin with `prefix`."""
    rows = [row for family in by_family(checklist.rows) for row in family]
    lines: dict[str, str] = {}
    for number, text in enumerate(checklist.context.texts):
        for line, ids in text.rows.items():
            lines |= dict.fromkeys(ids, f"s{index}-f{number}-{line}")
    times = ", ".join(f"{name} {duration(spent)}" for name, spent in checklist.seconds.items())
    return {
        "prefix": f"s{index}",
        "checklist": checklist,
        "summary": f"{counts(checklist)} ({times})" if times else counts(checklist),
        "rows": [(row, lines.get(row.id)) for row in rows],
        "to_change": alike(rows),
        "changed": None if checklist.changes is None else [*comparison.lines(checklist.changes)],
        "numbers": {row.id: number for number, row in enumerate(rows)},
        "statuses": sorted({str(row.status) for row in rows}),
        "families": sorted({row.family for row in rows}),
        "figures": [*figures(checklist)],
    }


def _evidence(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False, default=str)


def _hash(text: str) -> str:
    """As a content security policy names a text that may stand in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
