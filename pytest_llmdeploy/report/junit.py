"""What pytest's JUnit file says of a row, in words that GitLab, Jenkins and GitHub show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from _pytest.junitxml import LogXML, bin_xml_escape, xml_key

import pytest_llmdeploy
from pytest_llmdeploy.evidence import Row
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.letters import clean

_SHOWN = (
    "status",
    "requirement",
    "result",
    "measured",
    "bound",
    "limit",
    "unit",
    "margin",
    "hint",
)


def junit_file(config: pytest.Config) -> LogXML | None:
    """What `--junitxml` writes; None without it, and on an xdist worker."""
    return config.stash.get(xml_key, None)


def add_row(file: LogXML, report: pytest.TestReport, spec: str, row: Row) -> None:
    """The test case of a row that is settled, before `file` has the report of its teardown: in a
    tree of specs and families, with the row's fields as properties, its failure in one line.
    """
    case = file.node_reporter(report)
    case.add_attribute("classname", f"{spec.replace('.', '_')}.{row.family}")
    if report.when != "teardown":
        return
    for name, value in properties(row):
        case.add_property(name, value)
    for node in case.nodes:
        if node.tag in {"failure", "error"}:
            node.set("message", message(row))
        elif node.tag == "skipped" and not node.text:
            # GitLab shows the text, the others the message.
            node.text = node.get("message")


def add_verdicts(file: LogXML, checklists: Sequence[Checklist]) -> None:
    """The properties of the suite: the tool's version, and for each spec its path and verdict."""
    file.add_global_property("pytest-llmdeploy", pytest_llmdeploy.__version__)
    for checklist in checklists:
        file.add_global_property(f"{checklist.name}.spec", checklist.path)
        file.add_global_property(f"{checklist.name}.verdict", str(checklist.verdict))


def properties(row: Row) -> Iterator[tuple[str, str]]:
    """Those of a row's fields that it has, by name; why it is waived, and where it was read."""
    found = row.to_json()
    yield from ((name, str(found[name])) for name in _SHOWN if found[name] not in {None, ""})
    yield from (
        (name, str(row.evidence[name])) for name in ("source", "waived") if name in row.evidence
    )


def message(row: Row) -> str:
    """The row that did not pass, in one line."""
    required = f", required: {row.requirement}" if row.requirement else ""
    text = clean(f"{row.status}: {row.item}: {row.result}{required}")
    return bin_xml_escape(" ".join(text.split()))
