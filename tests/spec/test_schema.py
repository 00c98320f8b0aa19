"""The JSON Schema for editors is valid, agrees with the loader, and is the one that is shipped."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_llmdeploy.spec
from pytest_llmdeploy.spec import spec_schema
from pytest_llmdeploy.spec.document import read_document

from .documents import LOAD, SMALLEST, workload

SHIPPED = Path(pytest_llmdeploy.spec.__file__).with_name("spec.schema.json")
EXAMPLES = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))


MIXED = (
    SMALLEST + "workloads: [{name: a, rate: 1/s, mix: [{weight: 3, input_tokens: 8, output_tokens: "
    "8}, {weight: 0.5, input_tokens: {dataset: prompts.jsonl}}]}]\n"
)


@pytest.fixture(scope="module")
def validator() -> Any:
    """A validator of the spec's schema, which itself is valid."""
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def data(folder: Path, text: str) -> Any:
    """The plain data of a spec text."""
    (folder / "spec.yaml").write_text(text)
    return read_document(folder / "spec.yaml").data


def test_the_shipped_file_is_the_schema() -> None:
    """`llmdeploy schema` was run after the last change of the model."""
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == spec_schema()


def test_it_says_its_dialect() -> None:
    """Editors choose their rules by it."""
    assert spec_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_accepted(validator: Any, path: Path) -> None:
    """No editor marks a fault in what we ship."""
    assert [error.message for error in validator.iter_errors(read_document(path).data)] == []


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST + LOAD,
        workload("arrival: {gamma: 2.5}\nrequire: {prefill: {p99.9: 1s}, errors: 0%}"),
        workload("endpoint: chat\nshared_prefix: 3"),
        MIXED,
        SMALLEST + "serve: {env: {A: '1', B: {from_env: B}}, scheduling_policy: fcfs}\n",
    ],
)
def test_short_forms_are_accepted(validator: Any, tmp_path: Path, text: str) -> None:
    """What may be written as one word is no fault."""
    assert [error.message for error in validator.iter_errors(data(tmp_path, text))] == []


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST + "modle: {}\n",
        SMALLEST + "parallel: {tensors: 2}\n",
        SMALLEST + "serve: {max_num_seq: 4}\n",
        SMALLEST + "require: {memory: {max_use: 4%}}\n",
        workload("require: {prefil: {p99: 1s}}"),
        workload("colour: red"),
        workload("").replace("input_tokens: 8", "seed: 3"),
        MIXED.replace("weight", "wait"),
        "version: 1\nmodel: {id: x}\n",
    ],
)
def test_unknown_and_missing_keys_are_rejected(validator: Any, tmp_path: Path, text: str) -> None:
    """An editor marks what the loader would refuse."""
    assert not validator.is_valid(data(tmp_path, text))
