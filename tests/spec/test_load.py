"""What a valid spec means once it is loaded."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pytest_llmdeploy.spec import load_spec
from pytest_llmdeploy.spec.document import read_document

from .documents import SMALLEST, load, workload

EXAMPLES = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))


def records(value: Any) -> Iterator[BaseModel]:
    """Every record in a spec."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from records(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from records(item)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load(path: Path) -> None:
    """What we ship as an example is a spec, under its own name."""
    assert load_spec(path).name == path.stem


def test_the_published_deployment() -> None:
    """The units, the plain words and the sizes of the example are what they say."""
    spec = load_spec(next(path for path in EXAMPLES if path.stem == "llama3-70b-8xh100"))
    steady, peak = spec.workloads
    assert spec.parallel.devices == spec.hardware.devices == spec.require.devices == 8
    assert spec.require.memory.max_utilization == 0.85
    assert steady.require.ttft == {"p50": 500.0, "p99": 1000.0}
    assert steady.require.tpot == {"p50": 50.0, "p99": 100.0}
    assert (steady.rate, steady.concurrency, steady.require.errors) == (8.0, None, 0.0)
    assert (peak.rate, peak.concurrency, peak.max_duration.seconds) == (None, 128, 120)


def test_nothing_changes_after_loading(tmp_path: Path) -> None:
    """Every record of a spec is frozen."""
    spec = load(tmp_path, workload("require: {ttft: {p99: 1s}}"))
    found = list(records(spec))
    assert len(found) > 8
    for record in found:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, next(iter(type(record).model_fields)), None)


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("012", "012"),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1__0", "1__0"),
        ("2026-11-23", "2026-11-23"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'1'", "1"),
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("-0.5", -0.5),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("~", None),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("1" * 100_000 + "x", "1" * 100_000 + "x"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_plain_scalar_means_what_it_says(tmp_path: Path, plain: str, value: object) -> None:
    """YAML 1.1's surprises are texts, numbers are numbers, and no number is an accident."""
    (tmp_path / "a.yaml").write_text(f"key: {plain}\n")
    found = read_document(tmp_path / "a.yaml").data["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["\ufeff" + SMALLEST, SMALLEST.replace("\n", "\r\n")])
def test_files_from_other_systems_load(tmp_path: Path, text: str) -> None:
    """A byte order mark and CRLF are no mistakes."""
    assert load(tmp_path, text).model.id == "org/model"


def test_a_problem_found_later_has_its_line(tmp_path: Path) -> None:
    """The loaded spec remembers where every key was, and falls back to the closest parent."""
    spec = load(tmp_path, SMALLEST + "require:\n  memory:\n    min_headroom: 1GiB\n")
    assert spec.problem(("require", "memory", "min_headroom"), "x").line == 6
    assert spec.problem(("require", "memory", "max_utilization"), "x").line == 5
    assert spec.problem(("waive",), "x").line == 1


def test_the_name_is_the_file_s_stem(tmp_path: Path) -> None:
    """Unless the spec says another."""
    assert load(tmp_path, SMALLEST).name == "spec"
    assert load(tmp_path, SMALLEST + "name: mine\n").name == "mine"


def test_prefill_and_decode_are_ttft_and_tpot(tmp_path: Path) -> None:
    """Both words lead to the same requirement."""
    plain = load(tmp_path, workload("require: {prefill: {p99: 1s}, decode: {p50: 9ms}}"))
    terms = load(tmp_path, workload("require: {ttft: {p99: 1s}, tpot: {p50: 9ms}}"))
    assert plain.workloads == terms.workloads
    assert plain.workloads[0].require.latency == {"ttft": {"p99": 1000.0}, "tpot": {"p50": 9.0}}


def test_secrets_come_from_the_environment(tmp_path: Path) -> None:
    """A secret by reference is taken; texts and numbers that are none are kept as texts."""
    env = "{HF_TOKEN: {from_env: HF_TOKEN}, TOKENIZERS_PARALLELISM: 'false', N: 3, Z: 012}"
    found = load(tmp_path, f"{SMALLEST}serve: {{env: {env}}}\n").serve.env
    assert found["HF_TOKEN"].from_env == "HF_TOKEN"
    assert found["HF_TOKEN"].text is None
    texts = [found[name].text for name in ("TOKENIZERS_PARALLELISM", "N", "Z")]
    assert texts == ["false", "3", "012"]


def test_flags_pass_through_by_their_own_names(tmp_path: Path) -> None:
    """A flag that the plan does not read is kept as given; extra_args may repeat what vLLM may."""
    serve = "{enable_lora: true, seed: 3, extra_args: [--middleware=a, --middleware=b, --new, x]}"
    spec = load(tmp_path, f"{SMALLEST}serve: {serve}\n")
    assert spec.serve.model_extra == {"enable_lora": True, "seed": 3}
    assert spec.serve.extra_args == ("--middleware=a", "--middleware=b", "--new", "x")


def test_a_device_can_be_described(tmp_path: Path) -> None:
    """A GPU that the catalogue lacks has the memory that the spec gives it."""
    text = SMALLEST.replace("cpu", "{name: X9000, memory: 80GiB, link: nvlink}")
    device = load(tmp_path, text).hardware.device
    assert (device.platform, device.total_bytes) == ("cuda", 80 * 1024**3)


def test_an_owner_s_key_of_require_is_kept(tmp_path: Path) -> None:
    """Requirements of a user's own checks are not ours to judge."""
    spec = load(tmp_path, SMALLEST + "require: {team: {cold_start: 90s}}\n")
    assert spec.require.model_extra == {"team": {"cold_start": "90s"}}


def test_a_parser_that_is_imported_anew(tmp_path: Path) -> None:
    """As pytester does between its runs: the extension stays as it was, its module does not."""
    (tmp_path / "good.yaml").write_text(SMALLEST)
    (tmp_path / "bad.yaml").write_text("a: [1")
    script = """
import sys
from pathlib import Path
def reader():
    for name in [*sys.modules]:
        if name.partition(".")[0] in {"yaml", "pytest_llmdeploy"}:
            del sys.modules[name]
    from pytest_llmdeploy.spec import document
    return document
for _ in range(2):
    document = reader()
    print(*document.read_document(Path("good.yaml")).data)
    try:
        document.read_document(Path("bad.yaml"))
    except document.SpecError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()[:2], done.stdout.splitlines()[2:]
    assert first == second
    assert first[0].startswith("version model hardware")
    assert first[1].startswith("bad.yaml:2: is not YAML")
