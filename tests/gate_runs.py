"""Runs of the gate within a test, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.specs import write_spec

REQUIRE = {"devices": 2, "balance": {"layers": "0%"}}
PLAN_ROWS = {"feasible", "device_count", "deployable", "layer_balance"}
# Each of them is imported anew, for a second, in every run within a run.
QUICK = [f"-pno:{name}" for name in ("hypothesispytest", "syrupy", "anyio")]


def run(pytester: pytest.Pytester, *args: str | Path) -> pytest.RunResult:
    return pytester.runpytest("-pno:cacheprovider", *QUICK, *map(str, args))


def report(pytester: pytest.Pytester, *args: str | Path) -> tuple[pytest.RunResult, dict[str, Any]]:
    """The result of a run and the entry of its one spec in the JSON report."""
    result = run(pytester, *args, "--deploy-report", "out.json")
    document = json.loads((pytester.path / "out.json").read_text())
    assert document["schema_version"] == 1
    (entry,) = document["specs"]
    return result, entry


def statuses(entry: dict[str, Any]) -> dict[str, str]:
    return {row["check"]: row["status"] for row in entry["rows"]}


def own_checks(pytester: pytest.Pytester, body: str, **overrides: Any) -> Path:
    """A spec with a module of its own checks, whose text is `body`."""
    (pytester.path / "own.py").write_text("from pytest_llmdeploy import *\n" + body)
    return write_spec(pytester.path / "s.yaml", checks=["own.py"], **overrides)
