"""JUnit files as Jenkins, GitLab and GitHub read them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from junitparser import JUnitXml, xunit2

import pytest_llmdeploy
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.report.junit import message, properties
from tests.gate_runs import QUICK, REQUIRE, own_checks, run
from tests.report.rows import row
from tests.report.xunit import faults, github_shows, gitlab_shows, jenkins_shows
from tests.specs import write_spec

OUTCOMES = """
import pytest

@check("Passes")
def passes(expect): expect(0).at_most(1)
@check("Fails", hint="mend it")
def fails(expect): expect(2).at_most(1)
@check("Raises")
def raises(expect): raise ValueError("two\\nlines")
@check("Skips")
def skips(expect): pytest.skip("not today")
@pytest.fixture
def broken(): raise OSError("gone\\x1b[31m")
@check("Broken")
def is_broken(broken, expect): expect(0).at_most(1)
"""


def suite_of(path: Path) -> xunit2.TestSuite:
    """The one suite of a file, read by a parser that is not pytest's."""
    (suite,) = xunit2.JUnitXml.fromroot(JUnitXml.fromfile(str(path))._elem)
    assert isinstance(suite, xunit2.TestSuite)
    return suite


def properties_of(element: ET.Element) -> dict[str, str]:
    return {found.attrib["name"]: found.attrib["value"] for found in element.iter("property")}


def cases(path: Path) -> dict[str, ET.Element]:
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    return {found.attrib["name"]: found for found in root.iter("testcase")}


@pytest.fixture
def written(pytester: pytest.Pytester) -> Path:
    """The file of a run with every outcome, a waived row among them."""
    require = {"devices": 3, "balance": {"layers": "0%"}}
    waive = {"devices": "the third one is in repair"}
    spec = own_checks(pytester, OUTCOMES, require=require, waive=waive)
    run(pytester, "--deploy-spec", spec, "--deploy-plan-only", "--junitxml=j.xml")
    return pytester.path / "j.xml"


def test_what_readers_ask_for(written: Path) -> None:
    """Counts agree with the cases; every case has a name, a class, a time, and one outcome."""
    suite = suite_of(written)
    found = list(suite)
    assert suite.tests == len(found)
    for case in found:
        assert case.name
        assert case.classname
        assert case.time is not None
        assert len(case.result) <= 1
    counted = [case.result[0]._tag if case.result else "passed" for case in found]
    assert suite.failures == counted.count("failure") == 2
    assert suite.errors == counted.count("error") == 1
    assert suite.skipped == counted.count("skipped") == 2


def test_the_schema_of_the_xunit_plugin(written: Path) -> None:
    """The properties of a test case, which pytest itself has there, are all that it does not know;
    a message is one line.
    """
    root = ET.parse(written).getroot()  # noqa: S314 - our own file
    assert set(faults(root)) == {"properties in testcase"}
    assert not any("\n" in one.get("message", "") for one in root.iter())
    for case in root.iter("testcase"):
        case.attrib["status"] = "run"
        del case.attrib["name"]
    assert {"testcase without name", "status of testcase"} <= set(faults(root))


def test_what_gitlab_shows(written: Path) -> None:
    """Suite, name, status and the text of the outcome: it passes over messages and properties."""
    found = cases(written)
    suite, name, status, text = gitlab_shows(found["fails"])
    assert (suite, name, status) == ("s.own", "fails", "failure")
    assert "required: ≤ 1" in text
    assert gitlab_shows(found["is_broken"])[2] == "error"
    assert "OSError: gone" in gitlab_shows(found["is_broken"])[3]
    waived = ("s.feasibility", "device_count", "skipped", "waived: the third one is in repair")
    assert gitlab_shows(found["device_count"]) == waived
    assert "not today" in gitlab_shows(found["skips"])[3]
    assert gitlab_shows(found["passes"]) == ("s.own", "passes", "success", "")
    keys = [gitlab_shows(case)[:2] for case in found.values()]
    # It shows no more than the first of the same suite and name.
    assert len(set(keys)) == len(keys) == suite_of(written).tests


def test_what_jenkins_shows(written: Path) -> None:
    """Specs as packages, families as classes, the row as message and properties."""
    package, family, message, told = jenkins_shows(cases(written)["fails"])
    assert (package, family) == ("s", "own")
    assert message == "FAIL: Fails: 2, required: ≤ 1"
    assert told["hint"] == "mend it"
    assert jenkins_shows(cases(written)["device_count"])[2] == "waived: the third one is in repair"


def test_what_github_shows(written: Path) -> None:
    """The message in a line, the whole text as its details."""
    message, details = github_shows(cases(written)["fails"])
    assert message == "FAIL: Fails: 2, required: ≤ 1"
    assert "hint:     mend it" in details
    assert github_shows(cases(written)["is_broken"])[0] == "ERROR: Broken: gone"


def test_the_suite_tells_specs_and_version(written: Path) -> None:
    suite = ET.parse(written).getroot()[0]  # noqa: S314 - our own file
    assert properties_of(suite[0]) == {
        "pytest-llmdeploy": pytest_llmdeploy.__version__,
        "s.spec": "s.yaml",
        "s.verdict": "NOT READY",
    }


def test_cases_make_a_tree_and_tell_their_row(written: Path) -> None:
    """The class is the spec and the family; the properties are the row's fields."""
    found = cases(written)
    assert found["device_count"].attrib["classname"] == "s.feasibility"
    assert found["fails"].attrib["classname"] == "s.own"
    told = properties_of(found["fails"])
    assert told.pop("llmdeploy").startswith("{")
    assert told == {
        "status": "FAIL",
        "requirement": "≤ 1",
        "result": "2",
        "measured": "2.0",
        "limit": "1",
        "margin": "-1.0",
        "hint": "mend it",
        "source": "given by the check",
    }
    (failure,) = found["fails"].iter("failure")
    assert failure.attrib["message"] == "FAIL: Fails: 2, required: ≤ 1"
    assert "hint:     mend it" in (failure.text or "")
    (error,) = found["is_broken"].iter("error")
    assert error.attrib["message"] == "ERROR: Broken: gone"


def test_a_waived_row_says_why(written: Path) -> None:
    case = cases(written)["device_count"]
    (skipped,) = case.iter("skipped")
    assert skipped.attrib["message"] == "waived: the third one is in repair"
    assert properties_of(case)["status"] == "WAIVED"
    assert properties_of(case)["waived"] == "the third one is in repair"


def test_rows_from_workers(pytester: pytest.Pytester) -> None:
    """Under xdist the controller writes the same, each property once."""
    for name in ("a", "b"):
        write_spec(pytester.path / f"{name}.yaml", require=REQUIRE)
    arguments = ["--deploy-spec=*.yaml", "--deploy-plan-only", "--junitxml=j.xml", "-n1"]
    pytester.runpytest_subprocess(*QUICK, *arguments).assert_outcomes(passed=8)
    text = (pytester.path / "j.xml").read_text()
    for name in ("llmdeploy", "status", "result"):
        assert text.count(f'<property name="{name}"') == 8
    assert 'classname="b.feasibility"' in text


def test_only_what_a_row_has_is_told() -> None:
    """No property is empty, and the message is in one line."""
    assert dict(properties(row(margin=0.0))).keys() == {
        "status",
        "requirement",
        "result",
        "margin",
        "source",
    }
    assert message(row(Status.FAIL, requirement="", result="a\n\x1b[1mb")) == (
        "FAIL: Memory headroom: a b"
    )
