"""The checklist of a spec: its rows, what was not run, and the verdict. What every writer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_llmdeploy.evidence import Row, Status, Verdict
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.plan.graph import Graph


@dataclass(frozen=True, kw_only=True)
class SpecText:
    """A file of the spec: its `text`, and by line (from 1) the ids of the rows it calls for."""

    path: str
    text: str
    rows: Mapping[int, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Unchecked:
    """An item of the checklist that has no row, what the spec requires of it, and its phase."""

    item: str
    requirement: str
    phase: str


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a page has beside the checklist, for people: the plan, what was not checked, the spec's
    files, the launch command (or why there is none), and the deployment graph.
    """

    plan: Plan | None = None
    unchecked: Sequence[Unchecked] = ()
    texts: Sequence[SpecText] = ()
    launch: str = ""
    graph: Graph | None = None


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """`not_run` are the node ids of items without a row, `left_out` those that a plan-only run
    leaves out by design; `broken` says why a file is not a valid spec; `facts` are the parts plan,
    server, traffic and devices of the report; `repairs` say what would mend a plan that does not
    pass; `changes` are those since the baseline, if there is one; `context` is there for the forms
    that people read.
    """

    name: str
    path: str
    rows: Sequence[Row] = ()
    not_run: Sequence[str] = ()
    left_out: Sequence[str] = ()
    is_plan_only: bool = False
    broken: str = ""
    repairs: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] | None = None
    context: Context = Context()

    @property
    def verdict(self) -> Verdict:
        found = {row.status for row in self.rows}
        if Status.FAIL in found:
            return Verdict.NOT_READY
        all_green = all(status.is_green for status in found)
        if self.broken or self.not_run or not self.rows or not all_green:
            return Verdict.UNDECIDED
        return Verdict.PLAN_PASSES if self.is_plan_only else Verdict.READY

    def to_json(self) -> dict[str, Any]:
        """An entry of `specs` in the report."""
        return {
            "name": self.name,
            "path": self.path,
            "verdict": str(self.verdict),
            "plan": self.facts.get("plan"),
            "server": self.facts.get("server"),
            "traffic": self.facts.get("traffic"),
            "devices": self.facts.get("devices"),
            "repairs": list(self.repairs),
            "rows": [row.to_json() for row in self.rows],
            "not_run": [*self.not_run, *self.left_out],
            "error": self.broken or None,
            "changes": self.changes,
        }
