"""A spec that extends others: the last wins, and every fault is told where it stands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.spec import Place, Spec, SpecError, load_spec, looks_like_spec, spec_schema
from pytest_llmdeploy.spec.document import read_document
from pytest_llmdeploy.spec.extends import Node, merged, plain
from tests.specs import REPOSITORY, TINY_MODEL

VARIANTS = sorted((REPOSITORY / "examples" / "variants").glob("*.yaml"))
BASE = """\
version: 1
name: never inherited
model: {id: org/model}
hardware: {device: cpu}
serve:
  max_num_seqs: 8
  max_model_len: 512
workloads:
  - {name: a, input_tokens: 8, output_tokens: 8, rate: 1/s}
  - {name: b, input_tokens: 8, output_tokens: 8, rate: 1/s}
require:
  memory: {max_utilization: 90%}
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """The files, of which the last one is the spec."""
    path = folder
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def over(folder: Path, text: str, base: str = BASE) -> Spec:
    """The spec that `text` is over `base`."""
    return load_spec(write(folder, {"base.yaml": base, "top.yaml": f"extends: base.yaml\n{text}"}))


def test_mappings_are_merged_and_the_rest_is_replaced(tmp_path: Path) -> None:
    """What the top does not say is the base's; its name is its own."""
    spec = over(tmp_path, "serve: {max_num_seqs: 4, extra_args: [--a]}\nconfidence: 90%\n")
    assert (spec.serve.max_num_seqs, spec.serve.max_model_len) == (4, 512)
    assert (spec.name, spec.confidence, spec.model.id) == ("top", 0.9, "org/model")


def test_workloads_are_merged_by_name(tmp_path: Path) -> None:
    """One that is there is changed at its place, another one is added."""
    text = "workloads: [{name: b, rate: null, concurrency: 4}, {name: c, input_tokens: 1, "
    spec = over(tmp_path, text + "output_tokens: 2, rate: 3/s}]\n")
    assert [(w.name, w.rate, w.concurrency) for w in spec.workloads] == [
        ("a", 1, None),
        ("b", None, 4),
        ("c", 3, None),
    ]
    assert over(tmp_path, "workloads: []\n").workloads == ()


def test_null_removes(tmp_path: Path) -> None:
    """A null takes away what a base says, even where a null is no value."""
    spec = over(tmp_path, "require: {memory: null}\nserve: null\n")
    assert spec.require.memory.max_utilization is None
    assert spec.serve.max_num_seqs is None


def test_the_last_one_wins(tmp_path: Path) -> None:
    """Of several bases the later one; a base that two extend counts once, where it is first."""
    files = {
        "root.yaml": BASE,
        "one.yaml": "extends: root.yaml\nserve: {max_num_seqs: 1, seed: 1, max_model_len: 16}\n",
        "two.yaml": "extends: [root.yaml]\nserve: {max_num_seqs: 2, seed: 2}\n",
        "top.yaml": "extends: [one.yaml, two.yaml]\nserve: {max_num_seqs: 3}\n",
    }
    spec = load_spec(write(tmp_path, files))
    serve = spec.serve
    assert (serve.max_num_seqs, serve.model_extra, serve.max_model_len) == (3, {"seed": 2}, 16)
    assert [path.name for path in spec.source.files] == list(files)


def test_every_key_knows_its_file(tmp_path: Path) -> None:
    """Faults that are found after loading are told where the value stands."""
    spec = over(tmp_path, "version: 1\nserve:\n  max_num_seqs: 4\nworkloads: [{name: b, seed: 1}]")
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    assert spec.source.place(("serve", "max_num_seqs")) == Place(top, 4)
    assert spec.source.place(("serve", "max_model_len")) == Place(base, 7)
    assert spec.source.place(("workloads", 1, "rate")) == Place(base, 10)
    assert spec.source.place(("workloads", 1, "seed")) == Place(top, 5)
    assert str(spec.problem(("hardware", "device"), "x")) == f"{base}:4: hardware.device: x"
    assert spec.line(("require", "devices")) == 11


def test_paths_are_those_of_the_file_that_has_them(tmp_path: Path) -> None:
    """A base brings its model, its checks and its datasets along."""
    folder = write(
        tmp_path,
        {
            "base/team.py": "",
            "base/prompts.jsonl": '{"prompt": [1], "output_tokens": 1}\n',
            "base/base.yaml": "model: {id: tiny}\nhardware: {device: cpu}\nchecks: [team.py]\n"
            "workloads: [{name: a, input_tokens: {dataset: prompts.jsonl}, rate: 1/s}]\n",
        },
    ).parent
    (folder / "tiny").symlink_to(TINY_MODEL)
    spec = load_spec(write(tmp_path, {"top.yaml": "version: 1\nextends: base/base.yaml\n"}))
    assert spec.model_folder == TINY_MODEL.resolve()
    assert spec.resolve(spec.checks[0]) == folder / "team.py"
    assert spec.workloads[0].mean_input == 1
    assert not plan(spec).unknown


def test_one_that_extends_looks_like_a_spec(tmp_path: Path) -> None:
    """It may have no model of its own; other YAML that extends something has no version."""
    assert looks_like_spec(write(tmp_path, {"a.yaml": "version: 1\nextends: b.yaml\n"}))
    assert not looks_like_spec(write(tmp_path, {"a.yaml": "extends: [config:base]\n"}))


CHAIN = {f"{n}.yaml": f"extends: {n + 1}.yaml\n" for n in range(17)}
BROKEN: dict[str, Mapping[str, str]] = {
    "a circle": {"a.yaml": "extends: b.yaml\n", "b.yaml": "name: x\nextends: [a.yaml]\n"},
    "itself": {"a.yaml": "version: 1\nextends: ./a.yaml\n"},
    "missing": {"a.yaml": BASE, "b.yaml": "version: 1\nextends:\n  - a.yaml\n  - b.yml\n"},
    "missing in a base": {"x.yaml": "extends: y/z.yaml\n", "b.yaml": "extends: x.yaml\n"},
    "a folder": {"b.yaml": "extends: .\n"},
    "a device": {"b.yaml": "extends: /dev/zero\n"},
    "no name of a file": {"b.yaml": 'extends: "\\ud800"\n'},
    "no text": {"b.yaml": "version: 1\nextends: [3]\n"},
    "empty": {"b.yaml": "extends: ''\n"},
    "a mapping": {"b.yaml": "extends: {a: b}\n"},
    "null": {"b.yaml": "extends:\n"},
    "a base that is no mapping": {"a.yaml": "# no\n- version: 1\n", "b.yaml": "extends: a.yaml\n"},
    "a base that is not YAML": {"a.yaml": "version: 1\na: [}\n", "b.yaml": "extends: a.yaml\n"},
    "too many files": {"17.yaml": BASE, **dict(reversed(CHAIN.items()))},
    "too many bytes": {
        "a.yaml": "#" * 600_000,
        "c.yaml": "#" * 600_000,
        "b.yaml": "extends: [a.yaml, c.yaml]\n",
    },
    "too many values": {
        "a.yaml": f"waive: {{{', '.join(f'a{n}: x' for n in range(15_000))}}}\n",
        "b.yaml": "version: 1\nextends: a.yaml\nwaive: "
        f"{{{', '.join(f'b{n}: x' for n in range(15_000))}}}\n",
    },
    "faults in both": {
        "a.yaml": BASE + "modle: 3\n",
        "b.yaml": "extends: a.yaml\nserve: {max_num_seqs: x}\nworkloads: [{name: b, rat: 2}]\n",
    },
    "a fault in what was merged": {
        "a.yaml": BASE,
        "b.yaml": "extends: a.yaml\nversion: 1\nworkloads:\n  - name: b\n    concurrency: 3\n",
    },
    "a key missing": {"a.yaml": "serve: {seed: 1}\n", "b.yaml": "extends: a.yaml\nversion: 1\n"},
    "a path in a base": {
        "base/a.yaml": BASE.replace("input_tokens: 8", "input_tokens: {dataset: none.jsonl}", 1),
        "b.yaml": "extends: base/a.yaml\n",
    },
}


def test_a_path_is_told_as_the_spec_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here, where the spec is named from here."""
    write(tmp_path, {"base/a.yaml": "modle: x\n", "specs/b.yaml": "extends: ../base/a.yaml\n"})
    monkeypatch.chdir(tmp_path / "specs")
    with pytest.raises(SpecError, match=r"\.\./base/a\.yaml:1: modle: unknown key"):
        load_spec(Path("b.yaml"))


def test_many_ways_to_one_base_cost_no_time(tmp_path: Path) -> None:
    """Every file is read once, though there are thousands of ways to the first."""
    files = {"0.yaml": BASE, "1.yaml": "extends: 0.yaml\n"}
    for number in range(2, 16):
        files[f"{number}.yaml"] = f"extends: [{number - 1}.yaml, {number - 2}.yaml]\n"
    assert load_spec(write(tmp_path, files)).model.id == "org/model"


VALUES = st.none() | st.integers(0, 3) | st.sampled_from(["x", ""])
NAMED = st.lists(
    st.dictionaries(st.sampled_from("pq"), VALUES, max_size=2).flatmap(
        lambda entry: st.sampled_from("mno").map(lambda name: {"name": name, **entry})
    ),
    max_size=3,
)
TREES: st.SearchStrategy[Any] = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
SPECS = st.fixed_dictionaries(
    {}, optional={"a": TREES, "b": TREES, "workloads": NAMED | TREES, "c": TREES}
)


def tree(value: Any, where: Place) -> Node:
    """Plain data as nodes that all stand in one place."""
    if isinstance(value, dict):
        return Node({key: tree(one, where) for key, one in value.items()}, where)
    return Node([tree(one, where) for one in value] if isinstance(value, list) else value, where)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.tuples(SPECS, SPECS, SPECS))
def test_it_does_not_matter_what_is_merged_first(parts: tuple[Any, Any, Any]) -> None:
    """(a, b), c and a, (b, c) are the same data, every value at the same place."""
    a, b, c = (tree(part, Place(Path(str(n)), 1)) for n, part in enumerate(parts))
    left, right = merged(merged(a, b), c), merged(a, merged(b, c))
    assert plain(left) == plain(right)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(SPECS, min_size=2, max_size=4))
def test_every_value_is_at_its_place(parts: list[Any]) -> None:
    """A scalar of the result is in the file that its place names."""
    nodes = [tree(part, Place(Path(str(number)), 1)) for number, part in enumerate(parts)]
    node = nodes[0]
    for other in nodes[1:]:
        node = merged(node, other)
    data, places = plain(node)
    for key, where in places.items():
        found = data
        for part in key:
            found = found[part]
        if not isinstance(found, dict | list):
            assert found in scalars(parts[int(str(where.path))])


def scalars(value: Any) -> list[Any]:
    """Every scalar in some data."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [found for one in inner for found in scalars(one)]
    return [value]


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_the_examples(path: Path) -> None:
    """A family of variants: each is a spec, an editor marks nothing, and the plan is feasible."""
    validator = jsonschema.Draft202012Validator(spec_schema())
    assert [error.message for error in validator.iter_errors(read_document(path).data)] == []
    found = plan(load_spec(path))
    assert (found.is_feasible, found.unknown) == (True, "")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("serve: {max_num_seqs: null, seed: null}\nrequire: null\n", True),
        ("workloads: [{name: a, rate: 2/s}]\n", True),
        ("hardware: {nodes: 2}\n", True),
        ("hardware: {node: 2}\n", False),
        ("serve: {max_num_seq: null}\n", False),
        ("modle: {}\n", False),
    ],
)
def test_an_editor_knows_parts(tmp_path: Path, text: str, valid: bool) -> None:
    """A file that extends others says what it changes, by the same keys."""
    path = write(tmp_path, {"a.yaml": f"extends: base.yaml\n{text}"})
    validator = jsonschema.Draft202012Validator(spec_schema())
    assert validator.is_valid(read_document(path).data) == valid


def test_a_link_to_the_file_itself_is_a_circle_too(tmp_path: Path) -> None:
    """Files are told apart by what they are, not by their names."""
    path = write(tmp_path, {"a.yaml": "extends: b.yaml\n"})
    os.symlink(path, tmp_path / "b.yaml")  # noqa: PTH211 - what links where is plain here
    with pytest.raises(SpecError, match="goes round in a circle"):
        load_spec(path)
