"""`--deploy-baseline`: what has changed, where it is shown, and files that are no baseline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.gate_runs import report, run
from tests.specs import REPOSITORY, STEADY, write_spec
from tests.standin import Standin


def row_of(entry: dict[str, Any], check: str) -> dict[str, Any]:
    return next(row for row in entry["rows"] if row["check"] == check)


PLAN = ("--deploy-spec", "s.yaml", "--deploy-plan-only")
SCHEMA = REPOSITORY / "pytest_llmdeploy" / "report" / "report.schema.json"


def baseline(pytester: pytest.Pytester) -> Path:
    """The report of a run of s.yaml."""
    write_spec(pytester.path / "s.yaml", require={"balance": {"layers": "0%"}})
    run(pytester, *PLAN, "--deploy-report", "old.json")
    return pytester.path / "old.json"


def test_nothing_changed(pytester: pytest.Pytester) -> None:
    baseline(pytester)
    result, entry = report(pytester, *PLAN, "--deploy-baseline", "old.json")
    result.stdout.fnmatch_lines(["Nothing changed since the baseline."])
    assert entry["changes"]["rows"] == []


def test_what_changed_is_in_every_form(pytester: pytest.Pytester) -> None:
    baseline(pytester)
    spec = {"parallel": {"tensor": 1, "pipeline": 2}, "require": {"devices": 3}}
    write_spec(pytester.path / "s.yaml", **spec)
    args = (*PLAN, "--deploy-baseline", "old.json", "--deploy-report", "x.md")
    result, entry = report(pytester, *args)
    result.stdout.fnmatch_lines(["Changed since the baseline:", "  verdict: * → NOT READY"])
    flips = [(row["was"], row["is"]) for row in entry["changes"]["rows"]]
    assert (None, "FAIL") in flips
    assert "## Changed since the baseline" in (pytester.path / "x.md").read_text()
    document = json.loads((pytester.path / "out.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)


def test_without_a_baseline_there_are_no_changes(pytester: pytest.Pytester) -> None:
    write_spec(pytester.path / "s.yaml")
    result, entry = report(pytester, *PLAN)
    assert entry["changes"] is None
    result.stdout.no_fnmatch_line("*since the baseline*")


def test_it_may_stand_in_the_configuration(pytester: pytest.Pytester) -> None:
    baseline(pytester)
    pytester.makeini("[pytest]\ndeploy_baseline = old.json")
    run(pytester, *PLAN).stdout.fnmatch_lines(["Nothing changed since the baseline."])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no such file"),
        ("no JSON", "it is not a report in JSON: *"),
        ("[]", "it is not a report in JSON: Expected `object`, got `array`"),
        ("[" * 100_000, "it is not a report in JSON: *"),
        ('{"schema_version": 2}', "it has schema_version 2, this version reads 1"),
        ('{"schema_version": 1, "specs": [{}]}', "*missing required field `name`*"),
        (
            '{"schema_version": 1, "specs": [{"name": "t", "verdict": "READY"}]}',
            "no spec 's' in it: *",
        ),
    ],
)
def test_a_file_that_is_no_baseline(pytester: pytest.Pytester, text: str | None, why: str) -> None:
    """It is refused before anything runs."""
    write_spec(pytester.path / "s.yaml")
    if text is not None:
        (pytester.path / "old.json").write_text(text)
    result = run(pytester, *PLAN, "--deploy-baseline", "old.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --deploy-baseline old.json: {why}"])


def test_a_pipe_is_no_baseline(pytester: pytest.Pytester) -> None:
    """Reading one would never end."""
    write_spec(pytester.path / "s.yaml")
    os.mkfifo(pytester.path / "old.json")
    result = run(pytester, *PLAN, "--deploy-baseline", "old.json")
    result.stderr.fnmatch_lines(["ERROR: --deploy-baseline old.json: it cannot be read: *"])


def test_a_slower_server_is_said_to_be_and_fails(pytester: pytest.Pytester) -> None:
    """Traffic of three runs, of which the last has a first token that comes later, though within
    its limit. The first has nothing to compare with.
    """
    require = {**STEADY["require"], "regression": {"ttft": {"p50": "100%"}}}
    steady = {**STEADY, "min_duration": "3s", "require": require}
    write_spec(pytester.path / "s.yaml", workloads=[steady])
    # A busy machine makes requests alike, and those count for less: these differ by themselves.
    with Standin(ttft_ms=100, ttft_slow=((0.3, 60), (0.4, 80))) as standin:
        args = ("--deploy-spec", "s.yaml", "--deploy-url", standin.url)
        _, first = report(pytester, *args)
        (pytester.path / "out.json").rename(pytester.path / "old.json")
        _, same = report(pytester, *args, "--deploy-baseline", "old.json")
        standin.configure(ttft_ms=350, ttft_slow=((0.3, 250), (0.4, 300)))
        _, slower = report(pytester, *args, "--deploy-baseline", "old.json")
    rows = [row_of(entry, "ttft_regression") for entry in (first, same, slower)]
    assert [row["status"] for row in rows] == ["SKIPPED", "PASS", "FAIL"], rows
    assert rows[0]["result"] == "needs an earlier run to compare with: give --deploy-baseline"
    assert row_of(slower, "ttft")["status"] == "PASS"
    assert slower["changes"]["not_compared"] == {}
    medians = [
        one["low"]
        for one in slower["changes"]["latency"]
        if one["metric"] in {"ttft", "e2el"} and one["percentile"] == "p50"
    ]
    assert medians
    assert min(medians) > 1


def test_a_baseline_of_another_workload_is_no_baseline(pytester: pytest.Pytester, url: str) -> None:
    require = {"regression": {"e2el": {"p50": "10%"}}}
    steady = {**STEADY, "require": require, "max_duration": "3s"}
    write_spec(pytester.path / "s.yaml", workloads=[steady])
    sent = {"sent": {"rate": "1/s"}, "requests": {"outcome": []}}
    earlier = {"name": "s", "verdict": "READY", "traffic": {"steady": sent}}
    document = {"schema_version": 1, "specs": [earlier]}
    (pytester.path / "old.json").write_text(json.dumps(document))
    args = ("--deploy-spec", "s.yaml", "--deploy-url", url, "--deploy-baseline", "old.json")
    _, entry = report(pytester, *args)
    row = row_of(entry, "e2el_regression")
    assert row["status"] == "ERROR"
    assert row["result"].startswith("the baseline was another workload: ")
