"""The machine-readable report, by its JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest_llmdeploy
from pytest_llmdeploy.report.checklist import Checklist

SCHEMA_VERSION = 1
# A list of numbers, over several lines. In a string a line break is written otherwise.
_NUMBERS = re.compile(r"\[\s*\n\s*((?:(?:-?\d[\d.eE+-]*|null),?\s*\n\s*)+)\]")


def report(checklists: Sequence[Checklist]) -> dict[str, Any]:
    """The report of a run, by the contract of schema_version 1."""
    return {
        "schema_version": SCHEMA_VERSION,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool": {"name": "pytest-llmdeploy", "version": pytest_llmdeploy.__version__},
        "specs": [checklist.to_json() for checklist in checklists],
    }


def render(checklists: Sequence[Checklist]) -> str:
    """The text of the report."""
    text = json.dumps(report(checklists), indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
