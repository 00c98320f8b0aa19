"""The JSON report: by its schema, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_llmdeploy.report
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.report import Checklist
from pytest_llmdeploy.report.files import write_report
from pytest_llmdeploy.report.json_file import report
from pytest_llmdeploy.serving.introspection import ADDED, WorkerFacts
from tests.checks.scenes import gpus
from tests.plan.deployments import made
from tests.plan.test_search import STEADY
from tests.report.rows import checklist, full_checklist, row

SCHEMA: Mapping[str, Any] = json.loads(
    Path(pytest_llmdeploy.report.__file__).with_name("report.schema.json").read_text()
)


def validate(document: Any) -> None:
    """Raises unless `document` is a report by the schema, as a reader of the file finds it."""
    plain = json.loads(json.dumps(document, allow_nan=False))
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)


def test_the_schema_is_one() -> None:
    """The schema itself is valid, of the draft that it names."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "made_of",
    [
        full_checklist(),
        checklist(),
        checklist(broken="a.yaml:1: version: is required"),
        checklist(facts={"plan": plan(made(parallel={"tensor": 3})).to_json()}),
        checklist(facts={"plan": plan(made(model={"id": "unknown/model"})).to_json()}),
        checklist(facts={"plan": plan(made(workloads=[STEADY])).to_json()}),
        checklist(rows=[row(measured=float("inf"), bound=float("nan"), limit=1.0)]),
    ],
    ids=["full", "empty", "broken", "infeasible", "unknown", "predicted", "unbounded"],
)
def test_reports_validate(made_of: Checklist) -> None:
    """Whatever became of a spec, its report keeps the contract."""
    validate(report([made_of]))


def paths(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every key in a document, first entries of lists only."""
    if isinstance(node, dict):
        below = [found for key in node for found in paths(node[key], (*path, key))]
        return [*((*path, key) for key in node), *below]
    return paths(node[0], (*path, 0)) if isinstance(node, list) and node else []


CONTRACT = [
    path
    for path in paths(json.loads(json.dumps(report([full_checklist()]))))
    if not {"evidence", "counts", "failures", "series", "fields"} & set(path[:-1])
    and path[-1]
    not in {"steady", "not_run", "error", "unknown", "text", "rule", "key", "message", "source"}
    and path[-1] not in {"failures", "interrupted", "seconds"}
    and (path[-1] != "used_bytes" or "devices" in path[:-1])
    and path[-1] not in {"running_peak", "preemptions", "e2el", "stall"}
]


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: ".".join(map(str, path)))
def test_a_key_that_is_missing_or_renamed_is_refused(path: tuple[str | int, ...]) -> None:
    """The contract's keys are neither left out nor renamed."""
    document = json.loads(json.dumps(report([full_checklist()])))
    holder: Any = document
    for part in path[:-1]:
        holder = holder[part]
    holder[f"{path[-1]}_renamed"] = holder.pop(path[-1])
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def test_the_workers_of_a_server() -> None:
    """What they say of themselves is all in the schema; a word that is not is refused."""
    worker = asdict(WorkerFacts(pid=7, rank=0, local_rank=0, device="cpu", kv_bytes=9))
    found = {"added": list(ADDED), "problem": ""}
    server = {"url": "http://a", "workers": [worker], "introspection": found}
    validate(report([checklist(facts={"server": server})]))
    validate(report([checklist(facts={"server": {"workers": None, "introspection": None}})]))
    wrong: Mapping[str, Any]
    for wrong in ({"workers": [{**worker, "news": 1}]}, {"introspection": {"added": []}}):
        with pytest.raises(jsonschema.ValidationError):
            validate(report([checklist(facts={"server": {**server, **wrong}})]))


@pytest.mark.parametrize(
    ("key", "value"), [("status", "GREEN"), ("measured", "1 ms"), ("phase", "later")]
)
def test_a_row_of_another_kind_is_refused(key: str, value: str) -> None:
    """Statuses, phases and figures are what the contract says."""
    document = report([checklist(Status.PASS)])
    document["specs"][0]["rows"][0][key] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


class TestWriting:
    """The file is whole or as it was."""

    def test_it_is_the_report(self, tmp_path: Path) -> None:
        """Folders are made, the text is UTF-8, and nothing else is left there."""
        path = tmp_path / "deep" / "out.json"
        write_report(path, [full_checklist()])
        document = json.loads(path.read_text(encoding="utf-8"))
        validate(document)
        assert [row["status"] for row in document["specs"][0]["rows"]] == list(Status)
        assert [found.name for found in path.parent.iterdir()] == ["out.json"]

    def test_numbers_stand_in_a_line(self, tmp_path: Path) -> None:
        """Lists of numbers are not a line for each; what reads like one in a text stays."""
        given = {"a": [1, -2.5, None, 1e-30, 1e300], "b": "[\n 1,\n 2\n]", "c": [[], [[3], [""]]]}
        write_report(tmp_path / "out.json", [checklist(facts={"server": given})])
        text = (tmp_path / "out.json").read_text(encoding="utf-8")
        assert '"a": [1, -2.5, null, 1e-30, 1e+300],' in text
        assert json.loads(text)["specs"][0]["server"] == given

    def test_five_minutes_of_looks_are_small(self, tmp_path: Path) -> None:
        """At eight GPUs they are what a person still reads in an editor."""
        look = gpus()
        looks = [replace(look, at=float(second)) for second in range(300)]
        facts = {"devices": {"under_load": Recording(looks).to_json()}}
        write_report(tmp_path / "out.json", [checklist(facts=facts)])
        assert (tmp_path / "out.json").stat().st_size < 150 * 1024

    def test_nan_is_refused_and_the_old_report_stays(self, tmp_path: Path) -> None:
        """A figure that JSON does not have is an error, not half a file."""
        path = tmp_path / "out.json"
        path.write_text("old")
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_report(path, [checklist(facts={"server": {"seconds": float("nan")}})])
        assert path.read_text() == "old"
        assert [found.name for found in tmp_path.iterdir()] == ["out.json"]

    def test_a_write_that_breaks_off_leaves_the_old_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full while writing does not cost the report that was there."""
        path = tmp_path / "out.json"
        path.write_text("old")

        def half(self: Path, text: str, **_options: Any) -> int:
            self.write_bytes(text.encode()[: len(text) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space left"):
            write_report(path, [full_checklist()])
        assert path.read_text() == "old"
