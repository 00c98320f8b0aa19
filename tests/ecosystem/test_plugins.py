"""The plugins that people have beside this one: rows arrive in their reports, order and honesty
stay ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.specs import write_spec

# Which of them take part is said by name, so that each is tried alone.
OWN = ("-ppytest_llmdeploy.plugin", "-pno:cacheprovider")
GIVEN = ("--deploy-spec=s.yaml", "--deploy-plan-only")
CHECKS = """
from pytest_llmdeploy import check

@check("Too many", hint="use fewer")
def too_many(plan, expect):
    expect(plan.devices).at_most(1)

@check("Enough")
def enough(plan, expect):
    expect(plan.devices).at_least(1)
"""
PLAN_ORDER = ["feasible", "deployable", "too_many", "enough"]


@pytest.fixture(autouse=True)
def spec(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One row fails, three pass."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "own.py").write_text(CHECKS)
    return write_spec(pytester.path / "s.yaml", checks=["own.py"])


def rows(report: Path) -> list[dict[str, Any]]:
    (entry,) = json.loads(report.read_text())["specs"]
    found: list[dict[str, Any]] = entry["rows"]
    return found


def test_html(pytester: pytest.Pytester) -> None:
    """pytest-html has every item with its outcome and the text of the one that failed."""
    pytest.importorskip("pytest_html")
    plugins = ("-ppytest_metadata.plugin", "-ppytest_html.plugin")
    given = ("--html=out.html", "--self-contained-html")
    result = pytester.runpytest_subprocess(*OWN, *plugins, *GIVEN, *given)
    assert result.ret == 1
    page = (pytester.path / "out.html").read_text()
    for name in PLAN_ORDER:
        assert f"s.yaml::{name}" in page
    assert "Too many: 2" in page
    assert "use fewer" in page


def test_reportlog(pytester: pytest.Pytester) -> None:
    """pytest-reportlog has the row of every item, as JSON."""
    pytest.importorskip("pytest_reportlog")
    result = pytester.runpytest_subprocess(
        *OWN, "-ppytest_reportlog.plugin", *GIVEN, "--report-log=out.jsonl"
    )
    assert result.ret == 1
    lines = [json.loads(line) for line in (pytester.path / "out.jsonl").read_text().splitlines()]
    calls = [line for line in lines if line.get("when") == "call"]
    found = {line["nodeid"]: dict(line["user_properties"]) for line in calls}
    told = {id_: json.loads(properties["llmdeploy"]) for id_, properties in found.items()}
    assert list(told) == [f"s.yaml::{name}" for name in PLAN_ORDER]
    assert told["s.yaml::too_many"]["status"] == "FAIL"
    assert told["s.yaml::too_many"]["item"] == "Too many"


def test_allure(pytester: pytest.Pytester) -> None:
    """Allure shows the items by name, with the status and the text of the one that failed."""
    pytest.importorskip("allure_pytest")
    result = pytester.runpytest_subprocess(
        *OWN, "-pallure_pytest.plugin", *GIVEN, "--alluredir=allure"
    )
    assert result.ret == 1
    files = (pytester.path / "allure").glob("*-result.json")
    found = {entry["name"]: entry for entry in (json.loads(path.read_text()) for path in files)}
    assert {name: entry["status"] for name, entry in found.items()} == {
        "Feasible": "passed",
        "Deployable": "passed",
        "Too many": "failed",
        "Enough": "passed",
    }
    assert "required: ≤ 1" in json.dumps(found["Too many"]["statusDetails"], ensure_ascii=False)
    parameters = {each["name"]: each["value"] for each in found["Too many"].get("parameters", [])}
    assert parameters.items() >= {"required": "'≤ 1'", "result": "'2'"}.items()


def test_xdist(pytester: pytest.Pytester) -> None:
    """Plan checks in two processes make the same rows as in one, in the same order."""
    pytest.importorskip("xdist")
    found = []
    for plugins in ((), ("-pxdist.plugin", "-n2")):
        result = pytester.runpytest_subprocess(*OWN, *plugins, *GIVEN, "--deploy-report=out.json")
        assert result.ret == 1
        told = rows(pytester.path / "out.json")
        found.append([(row["check"], row["status"], row["result"]) for row in told])
    assert found[0] == found[1]
    assert [name for name, *_ in found[0]] == PLAN_ORDER


def test_rerunfailures(pytester: pytest.Pytester) -> None:
    """A plan check that is run again has one row, and its last; it says the same each time."""
    pytest.importorskip("pytest_rerunfailures")
    plugins = ("-ppytest_rerunfailures", "--reruns=1")
    result = pytester.runpytest_subprocess(*OWN, *plugins, *GIVEN, "--deploy-report=out.json")
    result.stdout.fnmatch_lines(["*1 failed, 3 passed*1 rerun*"])
    assert [row["check"] for row in rows(pytester.path / "out.json")] == PLAN_ORDER


@pytest.mark.parametrize(
    ("ini", "mark", "said"),
    [
        ("reruns = 2", "", "leave out --reruns"),
        ("", "@pytest.mark.flaky(reruns=2)", "take the mark flaky from s.yaml::alive"),
    ],
    ids=["by the ini file", "by a mark"],
)
def test_live_checks_are_not_rerun(
    pytester: pytest.Pytester, ini: str, mark: str, said: str
) -> None:
    """Whichever way it is asked for, it is refused before a server is launched."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makeini(f"[pytest]\n{ini}\n")
    live = f'\n{mark}\n@check("Alive")\ndef alive(server, expect):\n    expect(1).at_least(1)\n'
    (pytester.path / "own.py").write_text(f"import pytest\n{CHECKS}{live}")
    result = pytester.runpytest_subprocess(*OWN, "-ppytest_rerunfailures", "--deploy-spec=s.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert f"rerunning a live check until it passes proves nothing: {said}" in text


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_randomly(pytester: pytest.Pytester, seed: int) -> None:
    """The order of the phases and of the checklist stands; a user's other tests are shuffled."""
    pytest.importorskip("pytest_randomly")
    tests = "\n".join(f"def test_{n}(): pass" for n in range(8))
    pytester.makepyfile(test_mine=tests)
    result = pytester.runpytest_subprocess(
        *OWN, "-ppytest_randomly", f"--randomly-seed={seed}", "--deploy-spec=s.yaml",
        "--collect-only", "-q", "test_mine.py",
    )  # fmt: skip
    found = [line.partition("::")[2] for line in result.outlines if line.startswith("s.yaml::")]
    assert found[:4] == PLAN_ORDER
    assert found[-1] == "clean_stop"
    mine = [line for line in result.outlines if line.startswith("test_mine.py::")]
    assert len(mine) == 8
    assert mine != sorted(mine)


def test_coverage(pytester: pytest.Pytester) -> None:
    """pytest-cov measures a module of own checks."""
    pytest.importorskip("pytest_cov")
    given = ("-ppytest_cov.plugin", "--cov=.", "--cov-report=term-missing")
    result = pytester.runpytest_subprocess(*OWN, *given, *GIVEN)
    result.stdout.fnmatch_lines(["own.py * 100%*"])
