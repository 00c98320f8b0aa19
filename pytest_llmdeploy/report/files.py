"""Reports as files: the suffix says the form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pytest_llmdeploy.report.checklist import Checklist

# The module of each form has `render`; it is loaded when a file of that form is asked for.
FORMS = {".json": "json_file", ".md": "markdown", ".html": "html"}
# What a form takes beyond the package's own dependencies.
_TAKES = {".html": ("altair", "jinja2", "vl_convert")}


def has_what_it_takes(suffix: str) -> bool:
    """Whether the packages of the extra `report` are there, where the form takes them."""
    return all(find_spec(name) for name in _TAKES.get(suffix, ()))


def write_report(path: Path, checklists: Sequence[Checklist]) -> None:
    """Writes the report to `path`, whole or not at all.

    Raises:
        OSError: when it can't be written.
    """
    text = import_module(f"pytest_llmdeploy.report.{FORMS[path.suffix]}").render(checklists)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def add_summary(path: Path, checklists: Sequence[Checklist]) -> None:
    """Adds the report to a file that others may add to as well, as GitHub's step summary is.

    Raises:
        OSError: when it can't be written.
    """
    from pytest_llmdeploy.report.markdown import render  # noqa: PLC0415 - if asked for

    with path.open("a", encoding="utf-8") as file:
        file.write(render(checklists))
