"""What the readers of JUnit files take, written down from their sources.

Jenkins' xUnit plugin holds a file against a schema, junit-10.xsd (jenkinsci/xunit-plugin, as of
November 2025); Jenkins' own `junit` step (jenkinsci/junit-plugin, CaseResult.java), GitLab ("Unit
test reports" in its documentation) and action-junit-report (mikepenz, testParser.ts) look for
what they show, and pass over the rest.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

# By element: its children, the attributes that it must have, and those that it may have.
_OUTCOME = (set[str](), set[str](), {"type", "message"})
_SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {
            "group",
            "time",
            "skipped",
            "timestamp",
            "hostname",
            "id",
            "package",
            "file",
            "log",
            "url",
        },
    ),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name"},
        {"time", "classname", "group"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "skipped": _OUTCOME,
    "error": _OUTCOME,
    "failure": _OUTCOME,
    "system-out": (set(), set(), set()),
    "system-err": (set(), set(), set()),
}
_SECONDS = re.compile(r"\d*(\.\d*)?")


def faults(element: ET.Element) -> Iterator[str]:
    """What the schema says against an element and all that is in it."""
    children, needed, allowed = _SCHEMA[element.tag]
    yield from (f"{element.tag} without {name}" for name in needed - element.attrib.keys())
    yield from (f"{name} of {element.tag}" for name in element.attrib.keys() - needed - allowed)
    if element.tag.startswith("testsuite") and not _SECONDS.fullmatch(element.get("time", "")):
        yield f"time of {element.tag}"
    for child in element:
        if child.tag not in children:
            yield f"{child.tag} in {element.tag}"
        yield from faults(child)


def gitlab_shows(case: ET.Element) -> tuple[str, str, str, str]:
    """The suite, the name, the status and the text; of several outcomes, the first of these."""
    for status in ("failure", "error", "skipped"):
        if (found := case.find(status)) is not None:
            return case.attrib["classname"], case.attrib["name"], status, found.text or ""
    return case.attrib["classname"], case.attrib["name"], "success", ""


def jenkins_shows(case: ET.Element) -> tuple[str, str, str, dict[str, str]]:
    """The package, the class, the message, and with `keepProperties` the properties."""
    package, _, name = case.attrib["classname"].rpartition(".")
    found = next((one for tag in ("error", "failure", "skipped") for one in case.iter(tag)), None)
    told = {one.attrib["name"]: one.attrib["value"] for one in case.iterfind("properties/property")}
    return package, name, "" if found is None else found.get("message", ""), told


def github_shows(case: ET.Element) -> tuple[str, str]:
    """The message of the annotation, and its details."""
    found = next((one for tag in ("failure", "error") for one in case.iter(tag)), None)
    return ("", "") if found is None else (found.get("message", ""), (found.text or "").strip())
