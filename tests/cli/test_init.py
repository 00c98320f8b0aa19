"""`llmdeploy init`: the spec that is written is valid, and says what is only proposed."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pytest_llmdeploy.cli import main
from pytest_llmdeploy.cli.draft import Draft
from pytest_llmdeploy.cli.init import spec_text
from pytest_llmdeploy.serving.command_line import spec_from_command
from pytest_llmdeploy.spec import Spec, load_spec
from tests.serving.test_command_line import environment, model, parallel, served
from tests.specs import TINY_MODEL

LINE = "HF_TOKEN=hf_s3cret vllm serve org/Model -tp 8 --max-model-len 16k --port 80 --seed 5"


def init(line: str, *arguments: str, device: str = "H100-SXM-80GB") -> int:
    return main(["init", "--from-command", line, "--device", device, *arguments])


def written(folder: Path, line: str, *arguments: str, device: str = "H100-SXM-80GB") -> Path:
    path = folder / "made.yaml"
    assert init(line, "-o", str(path), *arguments, device=device) == 0
    return path


def test_the_spec_is_what_the_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is at its place, the rest is noted on stderr, and no secret is anywhere."""
    path = written(tmp_path, LINE)
    spec = load_spec(path)
    assert (spec.name, spec.model.id, spec.parallel.tensor) == ("made", "org/Model", 8)
    assert (spec.hardware.devices_per_node, spec.hardware.nodes) == (8, 1)
    assert (spec.serve.max_model_len, spec.serve.model_extra) == (16_000, {"seed": 5})
    assert spec.serve.env["HF_TOKEN"].from_env == "HF_TOKEN"
    out, err = capsys.readouterr()
    assert out.startswith(f"wrote {path}: look at what is marked `adjust`, then run\n")
    assert [note.split(":")[1] for note in err.splitlines()] == [" HF_TOKEN", " left out --port"]
    assert "hf_s3cret" not in path.read_text() + out + err


def test_the_spec_as_a_person_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A file to edit: short lines, and `adjust` wherever the command did not say it."""
    assert init("vllm serve org/Model -tp 2 --max-model-len 4096") == 0
    assert (
        capsys.readouterr().out
        == """\
# What is deployed: as the server's command line says.
version: 1
name: model-2xh100-sxm-80gb

model:
  id: org/Model

hardware:
  device: H100-SXM-80GB
  devices_per_node: 2
  nodes: 1

parallel:
  tensor: 2

serve:
  max_model_len: 4096

# What it must achieve, which is yours to say: adjust these, and take the `# ` away
# from what you require.
workloads:
  - name: steady
    input_tokens: 512                  # adjust: a number, or {uniform: [low, high]}
    output_tokens: 128                 # adjust
    rate: 1/s                          # adjust: the requests that come; or concurrency: 16
    max_duration: 10min                # adjust: a p99 takes about 400 requests
    require:
      errors: 0%                       # adjust
      # ttft: {p50: 500ms, p99: 2s}    # adjust: until the first token
      # tpot: {p50: 50ms, p99: 100ms}  # adjust: for each further token
      # keeps_up: true

require:
  devices: 2                              # TP 2 × PP 1 × DP 1
  # memory: {max_utilization: 95%}        # adjust: of every device
  # kv_cache: {concurrent_sequences: 16}  # adjust: each of max_model_len tokens
  # balance: {memory: 5%}                 # adjust: between the devices of a stage
  # interconnect: nvlink                  # between the devices of a TP group
"""
    )


def test_what_is_proposed_is_a_valid_spec_too(tmp_path: Path) -> None:
    """With the `# ` taken away, every proposal is a requirement."""
    path = written(tmp_path, "vllm serve m -tp 4")
    text = re.sub(r"^( +)# ", r"\1", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)
    spec = load_spec(path)
    (workload,) = spec.workloads
    assert set(workload.require.latency) == {"ttft", "tpot"}
    assert workload.require.keeps_up
    assert spec.require.model_fields_set == {
        "devices",
        "memory",
        "kv_cache",
        "balance",
        "interconnect",
    }


@pytest.mark.parametrize("length", [1, 2, 100, 639, 640, 10**6])
def test_the_workload_fits_into_the_model(tmp_path: Path, length: int) -> None:
    """A request has room, however short the sequences are that the server takes."""
    path = written(tmp_path, f"vllm serve m --max-model-len {length}", device="cpu")
    (workload,) = load_spec(path).workloads
    assert workload.longest <= max(2, length)
    assert "interconnect" not in path.read_text()


def test_a_model_beside_the_command_is_found_from_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is relative to where the command runs; in the spec, to the spec."""
    monkeypatch.chdir(TINY_MODEL.parent)
    path = written(tmp_path, f"vllm serve {TINY_MODEL.name}", device="cpu")
    assert load_spec(path).model_folder == TINY_MODEL.resolve()


def test_from_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of many lines need not be quoted once more."""
    monkeypatch.setattr("sys.stdin", io.StringIO("vllm serve org/m \\\n  --seed 7\n"))
    assert init("-", device="cpu") == 0
    assert "  seed: 7\n" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --force a file that is there stays as it is."""
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    assert init("vllm serve m", "-o", str(path)) == 2
    assert path.read_text() == "mine"
    expected = f"llmdeploy init: {path} exists: give --force to overwrite it\n"
    assert capsys.readouterr() == ("", expected)
    assert init("vllm serve m", "-o", str(path), "--force") == 0
    assert load_spec(path).model.id == "m"


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ("vllm serve m --sed 1", [], r"vLLM has no flag --sed: did you mean '--seed'\?"),
        ("run m", [], r"found 'run m': write `vllm serve MODEL"),
        ("vllm serve m -tp 0", [], r"parallel\.tensor: found 0: "),
        ("vllm serve m --gpu-memory-utilization 2", [], r"serve\.gpu_memory_utilization: .*range"),
        ("vllm serve m", ["-o", "no/such/folder.yaml"], r"cannot be written: No such file"),
    ],
)
def test_a_refusal_is_one_line(
    line: str, arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and there is no traceback."""
    assert init(line, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    """The catalogue is what can be named."""
    assert init("vllm serve m", device="H100-SXM-80G") == 2
    assert "did you mean 'H100-SXM-80GB'?" in capsys.readouterr().err


@settings(max_examples=100, deadline=None)
@given(model=model, parallel=parallel, serve=served, env=environment)
def test_any_spec_survives_being_written(
    tmp_path_factory: pytest.TempPathFactory,
    model: dict[str, Any],
    parallel: dict[str, Any],
    serve: dict[str, Any],
    env: dict[str, Any],
) -> None:
    """Whatever the flags hold, the file says it so that it is read as it was."""
    sections = {"model": model, "parallel": parallel, "serve": {**serve, "env": env}}
    data = {"version": 1, "hardware": {"device": "cpu", "devices_per_node": 1}, **sections}
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(spec_text(Draft(data, "x")), encoding="utf-8")
    before, after = Spec.model_validate(data), load_spec(path)
    assert (after.model, after.parallel, after.serve) == (
        before.model,
        before.parallel,
        before.serve,
    )


def test_the_data_of_a_command_is_not_changed() -> None:
    """Writing it does not use it up."""
    found = spec_from_command(LINE, "cpu")
    draft = Draft(found.data, "x")
    assert spec_text(draft) == spec_text(draft)
