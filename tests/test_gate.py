"""A run as its user sees it: rows, exit codes, options, and what it costs."""

from __future__ import annotations

import json

import pytest

from tests.gate_runs import QUICK, REQUIRE, own_checks, report, run, statuses
from tests.specs import write_spec

# Rows and exit codes


@pytest.mark.parametrize(
    ("body", "status", "verdict"),
    [
        ("pass", "ERROR", "UNDECIDED"),
        ("1 / 0", "ERROR", "UNDECIDED"),
        ("__import__('pytest').skip('not today')", "SKIPPED", "UNDECIDED"),
        ("assert plan.devices == 3, 'three are needed'", "FAIL", "NOT READY"),
        ("expect(1).at_most(0)", "FAIL", "NOT READY"),
        ("expect({}).at_most(0)", "ERROR", "UNDECIDED"),
        ("expect(0).at_most(1); expect(0).at_most(1)", "ERROR", "UNDECIDED"),
        ("expect(0).at_most(1); assert False", "FAIL", "NOT READY"),
        ("\n    try: expect(1).at_most(0)\n    except BaseException: pass", "FAIL", "NOT READY"),
    ],
    ids=[
        "never decides",
        "raises",
        "skips",
        "fails an assert",
        "compares",
        "nothing read",
        "decides twice",
        "asserts after it decided",
        "hides its failure",
    ],
)
def test_a_check_that_does_not_pass(
    pytester: pytest.Pytester, body: str, status: str, verdict: str
) -> None:
    """Whatever becomes of a check has its status, and the run is not green."""
    spec = own_checks(pytester, f'@check("Own")\ndef own(plan, expect):\n    {body}\n')
    result, entry = report(pytester, "--deploy-spec", spec, "--deploy-plan-only")
    assert statuses(entry)["own"] == status
    assert entry["verdict"] == verdict
    assert result.ret == 1


def test_an_error_outside_of_the_check_is_an_error(pytester: pytest.Pytester) -> None:
    """A fixture that fails after the check passed turns the row."""
    body = """
import pytest

@pytest.fixture
def fragile():
    yield
    raise OSError("gone")

@check("Own")
def own(fragile, expect):
    expect(0).at_most(1)
"""
    spec = own_checks(pytester, body)
    result, entry = report(pytester, "--deploy-spec", spec, "--deploy-plan-only")
    assert statuses(entry)["own"] == "ERROR"
    assert result.ret == 1


def test_a_waived_requirement_is_shown_and_does_not_fail(pytester: pytest.Pytester) -> None:
    """The row says what was found and why it is waived."""
    write_spec(
        pytester.path / "s.yaml",
        require={"devices": 3},
        waive={"devices": "the third one is in repair"},
    )
    result, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    row = next(row for row in entry["rows"] if row["check"] == "device_count")
    assert row["status"] == "WAIVED"
    assert "the third one is in repair" in row["result"]
    assert entry["verdict"] == "PLAN PASSES"
    assert result.ret == 0


def test_a_requirement_that_nobody_judges_is_an_error(pytester: pytest.Pytester) -> None:
    """A key without a check would otherwise be green by accident."""
    write_spec(pytester.path / "s.yaml", require={"team": {"cold_start": "5s"}})
    result = run(pytester, "--deploy-spec", "s.yaml")
    result.stdout.fnmatch_lines(["*s.yaml:*: require.team.cold_start: no check judges this*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_plan_that_cannot_work_is_not_launched(pytester: pytest.Pytester) -> None:
    """The live rows say why, and the run fails whatever was selected."""
    write_spec(pytester.path / "s.yaml", parallel={"tensor": 3}, require={"devices": 2})
    result, entry = report(pytester, "--deploy-spec", "s.yaml")
    assert statuses(entry) == {
        "feasible": "FAIL",
        "device_count": "FAIL",
        "deployable": "PASS",
        "ranks_up": "SKIPPED",
        "model_served": "SKIPPED",
        "server_limits": "SKIPPED",
        "clean_stop": "SKIPPED",
    }
    text = "TP 3: 4 attention heads are not divisible by 3 (vLLM: verify_with"
    assert any(text in row["result"] for row in entry["rows"] if row["status"] == "SKIPPED")
    assert result.ret == 1
    assert run(pytester, "--deploy-spec", "s.yaml", "-m", "live").ret == 1


def test_an_unknown_model_gives_error_rows(pytester: pytest.Pytester) -> None:
    """The file is a valid spec; what can't be planned is an ERROR that says what to do."""
    write_spec(pytester.path / "s.yaml", model={"id": "nobody/knows"}, require=REQUIRE)
    _, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    row = next(row for row in entry["rows"] if row["check"] == "feasible")
    assert row["status"] == "ERROR"
    assert "set model.config" in row["result"]


# Options that contradict


def test_only_a_launched_server_is_introspected(pytester: pytest.Pytester) -> None:
    """Nothing is added to a server that runs, whether the option or the spec names it."""
    write_spec(pytester.path / "s.yaml")
    result = run(pytester, "s.yaml", "--deploy-introspect", "--deploy-url", "http://127.0.0.1:1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--deploy-introspect adds to a server that this run launches*"])
    write_spec(pytester.path / "s.yaml", attach={"url": "http://127.0.0.1:1"})
    result = run(pytester, "s.yaml", "--deploy-introspect")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*s.yaml:*: attach: --deploy-introspect adds to a server*"])


def test_measuring_in_parallel_is_refused(pytester: pytest.Pytester) -> None:
    """On the controller, before any worker starts."""
    write_spec(pytester.path / "s.yaml")
    result = pytester.runpytest_subprocess("--deploy-spec", "s.yaml", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*measuring in parallel is invalid*--deploy-plan-only*"])


def test_plan_checks_may_run_in_parallel(pytester: pytest.Pytester) -> None:
    """The rows come back to the controller, which writes the report."""
    for name in ("a", "b"):
        write_spec(pytester.path / f"{name}.yaml", require=REQUIRE)
    result = pytester.runpytest_subprocess(
        "--deploy-spec=*.yaml", "--deploy-plan-only", "-n2", "--deploy-report=out.json"
    )
    result.assert_outcomes(passed=8)
    document = json.loads((pytester.path / "out.json").read_text())
    assert [spec["verdict"] for spec in document["specs"]] == ["PLAN PASSES"] * 2


def test_rerunning_until_green_is_refused(pytester: pytest.Pytester) -> None:
    """It would double the rate of false passes."""
    write_spec(pytester.path / "s.yaml")
    result = run(pytester, "--deploy-spec", "s.yaml", "--reruns", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*rerunning a live check*"])


def test_one_url_for_several_specs_is_refused(pytester: pytest.Pytester) -> None:
    """A server is of one spec."""
    for name in ("a", "b"):
        write_spec(pytester.path / f"{name}.yaml")
    result = run(pytester, "--deploy-spec=*.yaml", "--deploy-url=http://127.0.0.1:9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_report_of_an_unknown_form_is_refused(pytester: pytest.Pytester) -> None:
    """Before anything runs."""
    write_spec(pytester.path / "s.yaml")
    result = run(pytester, "--deploy-spec=s.yaml", "--deploy-report=out.pdf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--deploy-report out.pdf: the suffix says the form*"])


# What cannot be written


def test_a_report_that_cannot_be_written(pytester: pytest.Pytester) -> None:
    """The checklist is there all the same, and the exit code is that of a wrong option."""
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    (pytester.path / "full").touch()
    options = ["--deploy-spec", "s.yaml", "--deploy-plan-only", "--deploy-report"]
    result = run(pytester, *options, "full/out.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = ["*checklist: s*", "PLAN PASSES*", "ERROR: --deploy-report */full/out.json cannot be *"]
    for line in lines:
        result.stdout.fnmatch_lines([line])
    result.stdout.no_fnmatch_line("report: *")


def test_a_cache_that_cannot_be_written(pytester: pytest.Pytester) -> None:
    """One sentence says so: the server's log would go there."""
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    (pytester.path / "full").touch()
    options = ["--deploy-spec", "s.yaml", "--deploy-plan-only", "-ocache_dir=full/cache"]
    result = pytester.runpytest(*QUICK, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the cache_dir of pytest, where the server's log goes: *"])


# What it costs when it is not used


def test_without_a_spec_nothing_is_imported(pytester: pytest.Pytester) -> None:
    """The plugin costs a run without a spec next to nothing."""
    pytester.makepyfile(
        test_mine="""
        import sys

        def test_mine():
            ours = {name for name in sys.modules if name.startswith("pytest_llmdeploy.")}
            assert ours == {
                "pytest_llmdeploy.plugin", "pytest_llmdeploy.fixtures", "pytest_llmdeploy.hookspecs"
            }
            heavy = {"pydantic", "yaml", "aiohttp", "requests", "psutil", "pynvml", "tabulate"}
            assert not heavy & set(sys.modules)
        """
    )
    others = ["-pno:rerunfailures", "-pno:xdist"]
    pytester.runpytest_subprocess(*QUICK, *others).assert_outcomes(passed=1)


def test_a_plan_only_run_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    """What only a live server needs is not imported: the plan is checked in a second."""
    spec = own_checks(
        pytester,
        """
import sys

@check("Light")
def light(expect):
    heavy = {"aiohttp", "requests", "psutil", "pynvml", "prometheus_client", "asyncio", "numpy"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    expect(0).at_most(1)
""",
    )
    arguments = ["--deploy-spec", str(spec), "--deploy-plan-only"]
    others = ["-pno:rerunfailures", "-pno:xdist"]
    result = pytester.runpytest_subprocess(*QUICK, *others, *arguments)
    result.assert_outcomes(passed=3, deselected=4)
