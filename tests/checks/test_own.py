"""Own checks as their author meets them: what is refused and where, and how a failure is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.specs import write_spec

QUICK = [f"-pno:{name}" for name in ("hypothesispytest", "syrupy", "anyio", "cacheprovider")]
HEAD = "from pytest_llmdeploy import *\n\n"


def shown(pytester: pytest.Pytester, body: str) -> str:
    """What a plan-only run with a module of own checks prints, from the first failure on."""
    (pytester.path / "own.py").write_text(HEAD + body)
    required = {"team": {"limit": 3}} if "team" in body else {}
    write_spec(pytester.path / "s.yaml", checks=["own.py"], require=required)
    given = ("--deploy-spec=s.yaml", "--deploy-plan-only", "--no-header")
    result = pytester.runpytest(*QUICK, *given)
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    _, found, told = text.partition("= ERRORS =")
    told = told if found else text.partition("= FAILURES =")[2]
    return told.partition("= checklist: ")[0].strip("=\n").replace(str(pytester.path), "~").strip()


REFUSED = {
    "async": '@check("Own")\nasync def own(plan, expect): ...\n',
    "async generator": '@check("Own")\nasync def own(plan, expect): yield\n',
    "generator": '@check("Own")\ndef own(plan, expect):\n    yield\n',
    "no expect": '@check("Own")\ndef own(plan): ...\n',
    "no annotation": '@check("Own", require="team.limit")\ndef own(required, expect): ...\n',
    "no key": '@check("Own")\ndef own(required: int, expect): ...\n',
    "unknown name in an annotation": (
        '@check("Own", require="team.limit")\ndef own(required: "Byts", expect): ...\n'
    ),
    "no value of a spec": (
        'class Thing: ...\n@check("Own", require="team.limit")\n'
        "def own(required: Thing, expect): ...\n"
    ),
    "unknown fixture": '@check("Own")\ndef own(plam, expect): ...\n',
    "unknown placeholder": (
        '@check("Own", require="workloads.{workloads}.require.ttft")\n'
        "def own(required: int, expect): ...\n"
    ),
    "placeholder in the item": '@check("Own {workload}")\ndef own(plan, expect): ...\n',
    "placeholder as a fixture": '@check("Own")\ndef own(workload, expect): ...\n',
}
TOLD = {
    "two decisions": (
        '@check("Own")\ndef own(expect):\n    expect(0).at_most(1)\n    expect(0).at_most(1)\n'
    ),
    "no decision": '@check("Own")\ndef own(expect):\n    pass\n',
    "assert": (
        '@check("Own", require="team.limit", hint="use fewer")\n'
        "def own(plan, required: int, expect):\n"
        "    assert plan.devices + 2 <= required\n"
    ),
    "assert with a text": (
        '@check("Own")\ndef own(plan, expect):\n    assert plan.devices == 3, "three are needed"\n'
    ),
    "assert in a function": (
        "def even(number):\n    assert number % 2 == 0\n\n"
        '@check("Own")\ndef own(expect):\n    even(3)\n'
    ),
    "prints": (
        '@check("Own", hint="use fewer")\ndef own(plan, expect):\n'
        '    print("devices:", plan.devices)\n'
        '    expect({"a": 1, "b": 5}, "on each").at_most(3)\n'
    ),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_is_no_check(
    pytester: pytest.Pytester, body: str, snapshot: SnapshotAssertion
) -> None:
    """It is refused before anything runs, with file, line and what to write."""
    text = shown(pytester, body)
    assert "~/own.py:3: " in text or "~/own.py:4: " in text
    assert text == snapshot


@pytest.mark.parametrize("body", TOLD.values(), ids=TOLD)
def test_how_a_failure_is_told(
    pytester: pytest.Pytester, body: str, snapshot: SnapshotAssertion
) -> None:
    """With the item, the values and the place, whether it compared or asserted."""
    text = shown(pytester, body)
    assert "Own: " in text
    assert text == snapshot


PACKAGE = """
import pytest
from pytest_llmdeploy import check

@pytest.fixture
def limit():
    return 4

@check("Fleet size")
def fleet_size(plan, limit, expect):
    assert plan.devices <= limit
    expect(plan.devices).at_most(limit)
"""


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that offers checks by an entry point."""
    folder = pytester.path / "site"
    dist = folder / "fleet-1.0.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text("[pytest_llmdeploy.checks]\nfleet = fleet_checks\n")
    (folder / "fleet_checks.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_package(pytester: pytest.Pytester, installed: Path) -> None:
    """Its checks are known to every spec, with its fixtures and with rewritten asserts."""
    assert installed.exists()
    write_spec(pytester.path / "s.yaml")
    given = ("--deploy-spec=s.yaml", "--deploy-plan-only")
    result = pytester.runpytest(*QUICK, *given)
    result.stdout.fnmatch_lines(["Fleet size *≤ 4 *2 *PASS*"])
    assert result.ret == 0


def test_a_broken_package(pytester: pytest.Pytester, installed: Path) -> None:
    """It is named, without a traceback."""
    (installed / "fleet_checks.py").write_text("import gone_module")
    write_spec(pytester.path / "s.yaml")
    result = pytester.runpytest(*QUICK, "--deploy-spec=s.yaml", "--deploy-plan-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: the package fleet offers checks in fleet_checks, which cannot be imported: *"]
    )


def test_packages_are_off_with_all_plugins(
    pytester: pytest.Pytester, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTEST_DISABLE_PLUGIN_AUTOLOAD is for them as well."""
    assert installed.exists()
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write_spec(pytester.path / "s.yaml")
    given = ("-ppytest_llmdeploy.plugin", "--deploy-spec=s.yaml", "--deploy-plan-only")
    result = pytester.runpytest("-pno:cacheprovider", *given)
    result.stdout.no_fnmatch_line("Fleet size*")
    assert result.ret == 0
