"""What a run collects: files, ids, selection, order and fixtures."""

from __future__ import annotations

import json

import pytest

from tests.gate_runs import PLAN_ROWS, QUICK, REQUIRE, own_checks, report, run, statuses
from tests.specs import STEADY, write_spec
from tests.standin import Standin

# Which files are collected


def test_a_named_spec_is_collected_and_nothing_else(pytester: pytest.Pytester) -> None:
    """Without positional arguments, only the specs run, not the user's whole suite."""
    pytester.makepyfile(test_mine="def test_mine(): assert False")
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result = run(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    result.assert_outcomes(passed=4, deselected=4)
    assert result.ret == 0


def test_positional_arguments_are_kept_beside_the_spec(pytester: pytest.Pytester) -> None:
    """With positional arguments, the specs are added to what was asked for."""
    pytester.makepyfile(test_mine="def test_mine(): pass", test_other="def test_other(): pass")
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result = run(pytester, "test_mine.py", "--deploy-spec", "s.yaml", "--deploy-plan-only")
    result.assert_outcomes(passed=5, deselected=4)


def test_the_folder_of_a_spec_may_be_asked_for_as_well(pytester: pytest.Pytester) -> None:
    """A spec inside of a positional argument is collected once."""
    pytester.makepyfile(test_mine="def test_mine(): pass")
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result = run(pytester, ".", "--deploy-spec", "s.yaml", "--deploy-plan-only")
    result.assert_outcomes(passed=5, deselected=4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--deploy-spec", "specs/*.yaml"],
        ["--deploy-spec", "specs/a.yaml", "specs/b.yaml"],
        ["--deploy-spec", "specs/a.yaml", "--deploy-spec", "specs/b.yaml"],
        ["specs/a.yaml", "specs/b.yaml"],
        ["--deploy-spec", "specs/a.yaml", "specs/a.yaml", "specs/b.yaml"],
    ],
    ids=["glob", "unquoted glob", "repeated", "positional", "one named twice"],
)
def test_several_specs(pytester: pytest.Pytester, arguments: list[str]) -> None:
    """Globs, quoted or not, and repetition all name the same two specs."""
    for name in ("a", "b"):
        write_spec(pytester.path / "specs" / f"{name}.yaml", require=REQUIRE)
    write_spec(pytester.path / "specs" / "unasked.yml", require=REQUIRE)
    result = run(pytester, *arguments, "--deploy-plan-only", "--collect-only", "-q")
    ids = sorted(line for line in result.outlines if "::" in line)
    assert ids == [f"specs/{name}.yaml::{check}" for name in "ab" for check in sorted(PLAN_ROWS)]


def test_a_glob_that_matches_nothing_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """A spec that is not there is said so, and the run ends with pytest's usage error."""
    result = run(pytester, "--deploy-spec", "nowhere/*.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--deploy-spec nowhere/*.yaml: no such file*"])


def test_other_yaml_is_left_alone(pytester: pytest.Pytester) -> None:
    """YAML without `version` and `model` is not ours, even on the command line."""
    (pytester.path / "compose.yaml").write_text("services: {}\n")
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result = run(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only", "--collect-only", "-q")
    assert not any("compose" in line for line in result.outlines)


def test_specs_outside_of_the_root_keep_their_path(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A spec may lie anywhere."""
    path = write_spec(tmp_path_factory.mktemp("elsewhere") / "s.yaml", require=REQUIRE)
    result, entry = report(pytester, "--deploy-spec", path, "--deploy-plan-only")
    assert result.ret == 0
    assert entry["verdict"] == "PLAN PASSES"


def test_the_ini_option_names_specs(pytester: pytest.Pytester) -> None:
    """`deploy_spec` in the configuration is as good as the option."""
    pytester.makeini("[pytest]\ndeploy_spec = s.yaml\n")
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    run(pytester, "--deploy-plan-only").assert_outcomes(passed=4, deselected=4)


def test_hundreds_of_specs_take_seconds(pytester: pytest.Pytester) -> None:
    """Many specs are one argument for each folder: the time grows with their number only."""
    for index in range(100):
        write_spec(pytester.path / "specs" / f"{index}.yaml", require=REQUIRE)
    result = run(pytester, "--deploy-spec", "specs/*.yaml", "--deploy-plan-only", "-q")
    result.assert_outcomes(passed=400, deselected=400)
    assert result.duration < 20


# Broken specs


def test_a_broken_spec_is_one_error_and_the_others_run(pytester: pytest.Pytester) -> None:
    """file:line and no traceback; the good spec beside it still gets its rows."""
    write_spec(pytester.path / "good.yaml", require=REQUIRE)
    (pytester.path / "bad.yaml").write_text("version: 1\nmodel: {id: x}\nhardwear: {}\n")
    result = run(
        pytester,
        "--deploy-spec=*.yaml",
        "--deploy-plan-only",
        "--continue-on-collection-errors",
        "--deploy-report=out.json",
    )
    result.assert_outcomes(passed=4, errors=1, deselected=4)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*bad.yaml:3: hardwear: unknown key: did you mean 'hardware'?"])
    result.stdout.no_fnmatch_line("*Traceback*")
    document = json.loads((pytester.path / "out.json").read_text())
    verdicts = {spec["name"]: spec["verdict"] for spec in document["specs"]}
    assert verdicts == {"bad": "UNDECIDED", "good": "PLAN PASSES"}


def test_a_broken_spec_alone_stops_the_run(pytester: pytest.Pytester) -> None:
    """As any collection error does, with pytest's exit code 2."""
    (pytester.path / "bad.yaml").write_text("version: 1\nmodel: [\n")
    result = run(pytester, "--deploy-spec", "bad.yaml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*bad.yaml:*: is not YAML: *"])


# Selecting


def test_one_check_is_run_by_its_id(pytester: pytest.Pytester) -> None:
    """A node id is what the report and pytest show, and reruns that one check."""
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result, entry = report(pytester, "s.yaml::device_count")
    result.assert_outcomes(passed=1)
    assert [row["id"] for row in entry["rows"]] == ["s.yaml::device_count"]
    assert entry["verdict"] == "UNDECIDED"
    assert "s.yaml::feasible" in entry["not_run"]


def test_k_and_m_select(pytester: pytest.Pytester, url: str) -> None:
    """-k goes by name, -m by phase."""
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    arguments = ["--deploy-spec", "s.yaml", "--deploy-url", url]
    run(pytester, *arguments, "-k", "device").assert_outcomes(passed=1, deselected=6)
    run(pytester, *arguments, "-m", "plan").assert_outcomes(passed=4, deselected=3)
    run(pytester, *arguments, "-k", "model_served", "-m", "live").assert_outcomes(
        passed=1, deselected=6
    )


def test_only_own_tests_may_be_selected(pytester: pytest.Pytester) -> None:
    """A run of nothing but the user's own tests has pytest's own exit code."""
    pytester.makepyfile(test_mine="def test_mine(plan): assert plan.is_feasible")
    write_spec(pytester.path / "s.yaml")
    result = run(pytester, "test_mine.py", "--deploy-spec", "s.yaml", "-k", "mine")
    result.assert_outcomes(passed=1, deselected=6)
    assert result.ret == 0


def test_last_failed_reruns_what_failed(pytester: pytest.Pytester) -> None:
    """--lf works as for any test."""
    write_spec(pytester.path / "s.yaml", require={"devices": 4, "balance": {"layers": "0%"}})
    arguments = ["--deploy-spec", "s.yaml", "--deploy-plan-only"]
    pytester.runpytest(*QUICK, *arguments).assert_outcomes(passed=3, failed=1, deselected=4)
    pytester.runpytest(*QUICK, *arguments, "--lf").assert_outcomes(failed=1)


def test_plan_checks_come_first_then_one_deployment_after_the_other(
    pytester: pytest.Pytester,
) -> None:
    """Plan of all specs, then host, live and stopped of the first, then of the second."""
    pytester.makepyfile(test_mine="def test_mine(server): pass\ndef test_other(): pass")
    for name in ("a", "b"):
        write_spec(pytester.path / f"{name}.yaml", require=REQUIRE, workloads=[STEADY])
    result = run(pytester, "--co", "-q", "test_mine.py", "a.yaml", "b.yaml")
    order = [line for line in result.outlines if "::" in line]
    phases = [
        "plan"
        if line.split("::")[1].split("[")[0] in {*PLAN_ROWS, "decidable", "test_other"}
        else line.replace("test_mine.py::test_mine[", "")[0]
        for line in order
    ]
    assert phases == ["plan"] * 11 + ["a"] * 6 + ["b"] * 6
    assert order[-1] == "b.yaml::clean_stop"


# Fixtures


def test_a_conftest_cannot_replace_what_the_checks_use(pytester: pytest.Pytester, url: str) -> None:
    """A user's own `server` or `plan` is for the user's own tests."""
    pytester.makeconftest(
        """
        import pytest
        for name in ("server", "plan", "expect", "required", "device"):
            globals()[name] = pytest.fixture(lambda: "mine", name=name)
        """
    )
    pytester.makepyfile(
        test_mine="def test_mine(server, device): assert server == device == 'mine'"
    )
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    result = run(
        pytester, "test_mine.py", "s.yaml", "--deploy-url", url, "-k", "mine or served or feasible"
    )
    result.assert_outcomes(passed=3, deselected=5)


def test_user_tests_share_the_deployment(pytester: pytest.Pytester, standin: Standin) -> None:
    """A test in another file gets the same server object as the spec's checks."""
    standin.reset()
    pytester.makepyfile(
        test_mine="""
        def test_mine(server, spec, plan):
            assert server.model["id"] == spec.served_model
            assert len(plan.ranks) == 2
        """
    )
    write_spec(pytester.path / "s.yaml")
    run(
        pytester, "s.yaml::model_served", "test_mine.py", "--deploy-url", standin.url
    ).assert_outcomes(passed=2)
    assert len(standin.requests()) == 1


def test_without_a_spec_the_fixtures_skip(pytester: pytest.Pytester) -> None:
    """And say what is missing."""
    pytester.makepyfile(test_mine="def test_mine(server): pass")
    result = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*give --deploy-spec*"])


def test_own_fixtures_of_a_checks_module(pytester: pytest.Pytester) -> None:
    """The fixtures of a module of checks come along with it."""
    spec = own_checks(
        pytester,
        """
import pytest

@pytest.fixture
def answer():
    return 42

@check("Answer", require="team.answer")
def answered(answer, required: int, expect):
    expect(answer).equals(required)
""",
        require={"team": {"answer": 42}},
    )
    result, entry = report(pytester, "--deploy-spec", spec, "--deploy-plan-only")
    assert statuses(entry)["answered"] == "PASS"
    assert result.ret == 0


def test_own_fixtures_may_not_replace_the_pipeline(pytester: pytest.Pytester) -> None:
    """Such a module would change what the built-in checks judge."""
    spec = own_checks(pytester, "import pytest\n@pytest.fixture\ndef plan(): return None\n")
    result = run(pytester, "--deploy-spec", spec)
    result.stdout.fnmatch_lines(["*s.yaml:*: checks: the fixture 'plan' in *own.py would replace*"])
