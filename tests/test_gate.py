"""A run as its user sees it: collection, ids, options, rows and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.serving import readiness, start
from tests.serving.processes import fake_vllm, python
from tests.specs import STEADY, write_spec
from tests.standin import Standin

REQUIRE = {"devices": 2, "balance": {"layers": "0%"}}
PLAN_ROWS = {"feasible", "device_count", "deployable", "layer_balance"}


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    """A server that speaks as vLLM does."""
    with Standin(model="tiny-llama", max_model_len=512, tensor_parallel=2) as running:
        yield running


@pytest.fixture
def url(standin: Standin) -> str:
    standin.reset()
    return standin.url


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


def test_junitxml_carries_the_rows(pytester: pytest.Pytester) -> None:
    """The rows travel as properties of the test cases."""
    write_spec(pytester.path / "s.yaml", require=REQUIRE)
    run(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only", "--junitxml=j.xml")
    text = (pytester.path / "j.xml").read_text()
    assert text.count('<property name="llmdeploy"') == 4


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


def test_an_interrupted_run_writes_its_report(pytester: pytest.Pytester) -> None:
    """Ctrl-C in the middle keeps the rows there are, and names what did not run."""
    spec = own_checks(
        pytester,
        """
@check("One")
def one(expect): expect(0).at_most(1)
@check("Two")
def two(expect): raise KeyboardInterrupt
@check("Three")
def three(expect): expect(0).at_most(1)
""",
    )
    # In this process, pytester would hand the interrupt on to the run that we are in.
    arguments = ["--deploy-spec", str(spec), "--deploy-plan-only", "--deploy-report=out.json"]
    result = pytester.runpytest_subprocess(*QUICK, *arguments)
    (entry,) = json.loads((pytester.path / "out.json").read_text())["specs"]
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert statuses(entry)["one"] == "PASS"
    assert {"s.yaml::two", "s.yaml::three"} <= set(entry["not_run"])
    assert entry["verdict"] == "UNDECIDED"


# A dead or foreign server


def test_a_server_that_is_not_there(pytester: pytest.Pytester) -> None:
    """Every live row is an ERROR with the reason, once in full, also where warnings are errors."""
    require = {"memory": {"max_utilization": "90%"}, "kv_cache": {"concurrent_sequences": 1}}
    write_spec(pytester.path / "s.yaml", require=require)
    nobody = ("--deploy-url", "http://127.0.0.1:9")
    result, entry = report(pytester, "--deploy-spec", "s.yaml", *nobody, "-m", "live", "-Werror")
    assert set(statuses(entry).values()) == {"ERROR"}
    assert result.ret == 1
    assert str(result.stdout).count("hint: check --deploy-url") == 1


def test_a_server_that_does_not_start(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first live row has the decisive line of the log, and what to change; all say why."""
    error = "raise ValueError('No available memory for the cache blocks')"
    monkeypatch.setattr(start, "launch_command", lambda _spec, _port: python(error))
    write_spec(pytester.path / "s.yaml", require={"devices": 2})
    result, entry = report(pytester, "--deploy-spec", "s.yaml")
    first, *others = [row for row in entry["rows"] if row["status"] == "ERROR"]
    assert first["evidence"]["line"] == "ValueError: No available memory for the cache blocks"
    assert first["hint"].startswith("raise serve.gpu_memory_utilization")
    reason = "the server did not become ready: no memory is left for the KV cache"
    assert {row["result"] for row in (first, *others)} == {reason}
    assert {row["hint"] for row in others} == {""}
    result.stdout.fnmatch_lines([f"  → {first['item']}: raise serve.gpu_memory_utilization*"])


def test_a_plan_that_fails_says_what_would_mend_it(pytester: pytest.Pytester) -> None:
    """Below the hints, and in the report; a plan that passes has no such line."""
    cache = {"concurrent_sequences": 300, "tokens_per_sequence": 512}
    write_spec(pytester.path / "s.yaml", require={"kv_cache": cache})
    result, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    assert any("pass with serve.kv_cache_memory_bytes" in text for text in entry["repairs"])
    result.stdout.fnmatch_lines(["  → all built-in plan checks pass with *"])
    write_spec(pytester.path / "s.yaml")
    _, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    assert entry["repairs"] == []


def test_somebody_elses_server(pytester: pytest.Pytester, standin: Standin) -> None:
    """Attaching to the wrong model fails the row that says so."""
    standin.reset()
    serve = {"served_model_name": "other"}
    write_spec(pytester.path / "s.yaml", serve=serve)
    _, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-url", standin.url)
    row = next(row for row in entry["rows"] if row["check"] == "model_served")
    assert (row["status"], row["result"]) == ("FAIL", "tiny-llama")


def test_the_stages_of_the_start_are_told(pytester: pytest.Pytester, url: str) -> None:
    """Who waits for a server sees how far it is; -q is quiet."""
    write_spec(pytester.path / "s.yaml")
    arguments = ["s.yaml::model_served", "--deploy-url", url]
    loud = run(pytester, *arguments)
    loud.stdout.fnmatch_lines(["server   healthy after*", "server   first completion after*"])
    run(pytester, *arguments, "-q").stdout.no_fnmatch_line("server   *")


def test_introspection_is_told_and_never_fatal(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was added stands below the table and in the report, and that the stand-in has no workers
    to ask; its rows are those of any server.
    """
    monkeypatch.setattr(readiness, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(start, "launch_command", lambda _spec, port: fake_vllm(port))
    write_spec(pytester.path / "s.yaml")
    arguments = ["s.yaml::model_served", "s.yaml::server_limits"]
    result, entry = report(pytester, *arguments, "--deploy-introspect")
    result.stdout.fnmatch_lines(
        [
            "added by --deploy-introspect: VLLM_SERVER_DEV_MODE=1 PYTHONPATH=* --worker-extension*",
            "--deploy-introspect: http://127.0.0.1:*/collective_rpc answers HTTP 404",
        ]
    )
    assert statuses(entry) == {"model_served": "PASS", "server_limits": "FAIL"}
    assert entry["server"]["workers"] == []
    assert "--worker-extension-cls=llmdeploy_worker.Facts" in entry["server"]["command"]
    _, without = report(pytester, *arguments)
    assert (without["server"]["workers"], without["server"]["introspection"]) == (None, None)
    assert "--worker-extension-cls" not in without["server"]["command"]


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


# What it costs when it is not used


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
