"""From pytest's outcome of an item to its row in the checklist."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _pytest._code.code import TerminalRepr
from _pytest.pathlib import bestrelpath

from pytest_llmdeploy.checks import Expect, NotPassed, Requirement
from pytest_llmdeploy.checks.expect import DecidedTwiceError, explanation
from pytest_llmdeploy.evidence import Judgement, Row, Status
from pytest_llmdeploy.fixtures import NotServing
from pytest_llmdeploy.secrets import redact, redacted
from pytest_llmdeploy.session import phase_of

REQUIREMENT: pytest.StashKey[Requirement] = pytest.StashKey()
EXPECT: pytest.StashKey[Expect] = pytest.StashKey()
_PROPERTY = "llmdeploy"
# What of a row the server, or whoever else was asked, has a say in.
_TOLD = ("requirement", "result", "evidence", "hint")
_UNDECIDED = "the check ended without a decision: it must compare something, with `expect`"


def attach_row(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, *, is_repeated: bool
) -> None:
    """Puts the item's row into `report`, and makes the report's outcome agree with it.

    `is_repeated` says that the failure of the same server has been reported in full already.
    """
    requirement = item.stash[REQUIREMENT]
    judgement = _judgement(item, call, report)
    if judgement is None:
        return
    if report.passed and not judgement.status.is_green:
        report.outcome = "failed"
        report.longrepr = explanation(requirement.item, judgement)
    if call.excinfo and isinstance(call.excinfo.value, DecidedTwiceError):
        report.longrepr = explanation(requirement.item, judgement)
    if call.excinfo and judgement.status is Status.FAIL and _is_plain(call.excinfo.value):
        judgement = replace(judgement, evidence={"source": _asserted_at(item, call.excinfo)})
        report.longrepr = _assertion(requirement.item, judgement, call.excinfo)
    if call.excinfo and isinstance(call.excinfo.value, NotServing):
        if is_repeated:
            report.longrepr = explanation(requirement.item, judgement)
        else:
            judgement = _told_by(call.excinfo.value, judgement)
    if requirement.waived and not judgement.status.is_green:
        judgement = _waived(judgement, requirement.waived)
        report.outcome = "skipped"
        report.wasxfail = f"waived: {requirement.waived}"
    row = _row(item, requirement, judgement).to_json()
    row.update({name: redacted(row[name]) for name in _TOLD})
    entry = (_PROPERTY, json.dumps({"spec": str(item.path), **row}, allow_nan=False))
    for properties in (item.user_properties, report.user_properties):
        properties[:] = [pair for pair in properties if pair[0] != _PROPERTY]
        properties.append(entry)


def row_in(report: pytest.TestReport) -> tuple[Path, Row] | None:
    """The row that travels with a report, and the file of its spec."""
    found = [value for name, value in report.user_properties if name == _PROPERTY]
    if not found:
        return None
    fields = json.loads(str(found[0]))
    return Path(fields.pop("spec")), Row.from_json(fields)


def hide_secrets(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Redacts what pytest shows of an item: its failure with arguments and locals, its output."""
    report.longrepr = without_secrets(report.longrepr)
    report.sections = redacted(report.sections)


def without_secrets(shown: Any) -> Any:
    """A failure as pytest represents it, redacted in place where it is more than a text."""
    return rewritten(shown, redact)


def rewritten(shown: Any, change: Callable[[str], str]) -> Any:
    """A failure as pytest represents it with every text changed, in place where it is more than a
    text.
    """
    if isinstance(shown, TerminalRepr):
        for name, part in vars(shown).items():
            setattr(shown, name, rewritten(part, change))
        return shown
    if isinstance(shown, list | tuple):
        return type(shown)(rewritten(part, change) for part in shown)
    return change(shown) if isinstance(shown, str) else shown


def _judgement(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> Judgement | None:
    """The judgement that a phase of the item settles; None when it settles nothing."""
    decided = _recorded(item)
    error = call.excinfo.value if call.excinfo else None
    if report.when != "call":
        if error is None:
            return None
        if report.skipped:
            return _without(item, Status.SKIPPED, str(error))
        return _without(item, Status.ERROR, _first_line(error))
    if isinstance(error, NotPassed) and decided:
        return decided
    if error is None:
        return decided or _at_fault(item, _UNDECIDED)
    if isinstance(error, DecidedTwiceError):
        return _at_fault(item, str(error))
    if report.skipped:
        return _without(item, Status.SKIPPED, str(error))
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return _without(item, Status.FAIL, _first_line(error))
    return _without(item, Status.ERROR, f"{type(error).__name__}: {_first_line(error)}")


def _is_plain(error: BaseException) -> bool:
    return isinstance(error, AssertionError) and str(error) != ""


def _asserted_at(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]) -> str:
    """File and line of a failing `assert`."""
    entry = failure.traceback[-1]
    path = bestrelpath(item.config.rootpath, Path(entry.path))
    return f"{path}:{entry.lineno + 1}"


def _assertion(
    item: str, judgement: Judgement, failure: pytest.ExceptionInfo[BaseException]
) -> str:
    """A failing `assert` as a comparison that did not pass is told, with what pytest found out."""
    first, *details = explanation(item, judgement).splitlines()
    values = [f"    {line.strip()}" for line in str(failure.value).splitlines()[1:]]
    code = f"  assert:   {' '.join(str(failure.traceback[-1].statement).split())}"
    return "\n".join([first, *values, *details[:1], code, *details[1:]])


def _recorded(item: pytest.Item) -> Judgement | None:
    expect = item.stash.get(EXPECT, None)
    return expect.judgement if expect else None


def _without(item: pytest.Item, status: Status, result: str) -> Judgement:
    """A judgement that no comparison made."""
    requirement = item.stash[REQUIREMENT]
    decided = _recorded(item)
    wanted = decided.requirement if decided else requirement.wanted
    hint = requirement.check.hint if status is Status.FAIL else ""
    return Judgement(status=status, requirement=wanted, result=result, hint=hint)


def _at_fault(item: pytest.Item, result: str) -> Judgement:
    """The check itself is wrong, and this is where it is."""
    path, _, line = item.stash[REQUIREMENT].check.place.rpartition(":")
    source = f"{bestrelpath(item.config.rootpath, Path(path))}:{line}"
    return replace(_without(item, Status.ERROR, result), evidence={"source": source})


def _told_by(failure: NotServing, judgement: Judgement) -> Judgement:
    """The judgement with what else the failure says: the log's decisive line, what to change."""
    said = dict(line.partition(": ")[::2] for line in str(failure).splitlines())
    evidence = {"source": "the server's log", "line": said["log"]} if "log" in said else {}
    return replace(judgement, hint=said.get("hint", ""), evidence=evidence)


def _waived(judgement: Judgement, reason: str) -> Judgement:
    evidence = {**judgement.evidence, "waived": reason, "status": str(judgement.status)}
    result = f"{judgement.result} (waived: {reason})"
    return replace(judgement, status=Status.WAIVED, result=result, evidence=evidence, hint="")


def _row(item: pytest.Item, requirement: Requirement, judgement: Judgement) -> Row:
    check = requirement.check
    fields = {name: getattr(judgement, name) for name in Judgement.__dataclass_fields__}
    return Row(
        check=check.name,
        id=item.nodeid,
        family=check.family,
        phase=phase_of(check),
        require=requirement.key,
        item=requirement.item,
        **fields,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
