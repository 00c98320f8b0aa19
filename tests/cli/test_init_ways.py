"""`llmdeploy init` from a manifest, a running server, or a model: a spec that loads and plans."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.cli import RefusedError, main
from pytest_llmdeploy.cli.manifest import draft_of_manifest
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.spec import Spec, load_spec
from tests.specs import TINY_MODEL
from tests.standin import Standin

MANIFESTS = Path(__file__).parent / "manifests"
LLAMA = "meta-llama/Meta-Llama-3-70B-Instruct"
Captured = pytest.CaptureFixture[str]


def written(folder: Path, *arguments: str) -> Spec:
    """The spec that is written, as it is loaded."""
    path = folder / "made.yaml"
    assert main(["init", *arguments, "-o", str(path), "--force"]) == 0
    return load_spec(path)


def deployed(path: Path) -> str:
    """The part of a written file that says what is deployed."""
    return path.read_text().partition("# What it must achieve")[0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("production-stack", []),
        ("leader-worker-set", []),
        ("llm-d", ["--only", "ms-qwen-decode", "--device", "H100-SXM-80GB"]),
        ("inference-service", []),
        ("llm-inference-service", []),
    ],
)
def test_from_a_manifest(
    tmp_path: Path,
    name: str,
    arguments: Sequence[str],
    capsys: Captured,
    snapshot: SnapshotAssertion,
) -> None:
    """Command, environment, GPUs and nodes are the server's; the rest is noted; the plan works."""
    spec = written(tmp_path, "--from-manifest", str(MANIFESTS / f"{name}.yaml"), *arguments)
    noted = capsys.readouterr().err
    assert "s3cret" not in noted + (tmp_path / "made.yaml").read_text()
    assert (deployed(tmp_path / "made.yaml"), noted) == snapshot
    found = plan(spec)
    assert found.unknown == ""
    assert found.devices == found.available


def test_a_script_s_pipes_are_not_the_server_s(tmp_path: Path) -> None:
    """Of several servers the chosen one, though its script does more than start it."""
    path = str(MANIFESTS / "llm-d.yaml")
    spec = written(
        tmp_path, "--from-manifest", path, "--only", "ms-qwen-prefill", "--device", "H200-SXM-141GB"
    )
    assert (spec.model.id, spec.serve.model_extra) == ("Qwen/Qwen3-32B", {})


def test_a_manifest_from_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `helm template … | llmdeploy init --from-manifest -`."""
    raw = (MANIFESTS / "production-stack.yaml").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert written(tmp_path, "--from-manifest", "-").parallel.tensor == 4


def server(*args: str, more: str = "", kind: str = "Deployment") -> str:
    """A manifest with one server."""
    return (
        f"kind: {kind}\nmetadata: {{name: a}}\nspec:\n  template:\n    spec:\n{more}"
        f"      containers: [{{image: vllm/vllm-openai, args: {list(args)!r}}}]\n"
    )


CPU = ["--device", "cpu"]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("kind: Service\n", [], "no vLLM server in it"),
        ("", [], "no vLLM server in it"),
        ("kind: [", [], r"m\.yaml:2: is not YAML: "),
        ("a: " + "[" * 3000, [], "is not YAML: "),
        ("\xff\0", [], "is not YAML: "),
        (server("m"), [], "the Deployment 'a' does not say which GPU"),
        (
            server("m", more="      nodeSelector: {nvidia.com/gpu.product: Tesla-T4}\n"),
            [],
            "'Tesla-T4' is not in the catalogue: give --device, one of H100-SXM-80GB",
        ),
        (server("m", "--tensor-paralel-size=2"), CPU, "the Deployment 'a': vLLM has no flag"),
        (server("m", "--seed=$(SEED)", kind="StatefulSet"), CPU, "StatefulSet 'a': --seed: "),
        (server("m") + "---\n" + server("n").replace("name: a", "name: b"), CPU, "--only: a, b$"),
        (server("m"), [*CPU, "--only", "b"], "--only: no server is called 'b': known are: a"),
        (server("m", "-tp=0"), CPU, "parallel.tensor: found 0"),
        (server("m"), ["--device", "H10-SXM-80GB"], "did you mean 'H100-SXM-80GB'"),
    ],
)
def test_a_manifest_that_will_not_do(
    tmp_path: Path, text: str, arguments: Sequence[str], message: str, capsys: Captured
) -> None:
    """One line says why, and the exit code is 2."""
    path = tmp_path / "m.yaml"
    path.write_text(text, encoding="latin-1")
    assert main(["init", "--from-manifest", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(message, err.rstrip("\n")), err


TREES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["vllm", "vllm serve m"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "metadata", "name", "spec", "template", "containers", "args", "command",
                 "env", "value", "valueFrom", "resources", "limits", "nvidia.com/gpu", "predictor",
                 "model", "leaderWorkerTemplate", "leaderTemplate", "size", "replicas", "items",
                 "nodeSelector", "affinity", "parallelism", "storageUri", "uri", "image"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)  # fmt: skip
KINDS = st.sampled_from(
    ["Deployment", "Pod", "List", "LeaderWorkerSet", "InferenceService", "LLMInferenceService"]
)


@settings(max_examples=40, deadline=None)
@given(kind=KINDS, tree=TREES, spec=TREES)
def test_any_manifest_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, tree: object, spec: object
) -> None:
    """Whatever stands where something else should, there is no traceback."""
    container = {"image": "vllm", "args": ["m"], "env": tree, "resources": tree}
    pod = {"containers": [container, tree], "nodeSelector": tree, "affinity": tree}
    below = {"template": {"spec": pod, **pod}, "predictor": pod, "parallelism": tree, "model": tree}
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(
        yaml.safe_dump_all([{"kind": kind, "spec": {**below, "containers": [container]}}, spec])
    )
    with suppress(RefusedError):
        draft_of_manifest(str(path), "cpu", only=None, devices_per_node=None, nodes=None)


def test_from_a_server(
    tmp_path: Path, standin: Standin, capsys: Captured, snapshot: SnapshotAssertion
) -> None:
    """What it tells is declared, what it does not is left to be filled in."""
    spec = written(tmp_path, "--from-url", f"{standin.url}/", "--device", "cpu")
    assert spec.attach
    assert (spec.parallel.tensor, spec.attach.url) == (2, f"{standin.url}/")
    text = deployed(tmp_path / "made.yaml").replace(standin.url, "http://127.0.0.1:8000")
    assert text == snapshot
    assert capsys.readouterr().err == ""


def test_a_served_name_is_not_the_model(tmp_path: Path) -> None:
    """The model is what the server was told to load, as far as that says something here."""
    with Standin(root=LLAMA, model="llama") as standin:
        spec = written(tmp_path, "--from-url", standin.url, "--device", "H100-SXM-80GB")
    assert (spec.model.id, spec.served_model) == (LLAMA, "llama")


def test_a_folder_of_a_server_on_this_machine_is_the_model(tmp_path: Path) -> None:
    """Any other folder says nothing here."""
    (tmp_path / "here").mkdir()
    for root, model in ((TINY_MODEL, str(TINY_MODEL)), ("/not/here", "tiny-llama")):
        with Standin(root=str(root), model="tiny-llama") as standin:
            arguments = ("--from-url", standin.url, "--device", "cpu", "--force")
            spec = written(tmp_path / "here", *arguments)
        assert (spec.model.id, spec.served_model) == (model, "tiny-llama")


def test_a_server_that_tells_nothing(standin: Standin, capsys: Captured) -> None:
    """Nobody's device is guessed, and who is no server is none."""
    assert main(["init", "--from-url", standin.url]) == 2
    assert "serves tiny-llama, but no server tells its devices: give --device" in (
        capsys.readouterr().err
    )
    for url, message in [
        ("vllm:8000", "found 'vllm:8000': write a URL"),
        ("http://127.0.0.1:9", "/v1/models does not answer"),
        ("http://a:b@c", "a secret is not written into a URL"),
    ]:
        assert main(["init", "--from-url", url, "--device", "cpu"]) == 2
        assert re.fullmatch(f"llmdeploy init: --from-url: .*{message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("model", "device", "arguments"),
    [
        (LLAMA, "H100-SXM-80GB", []),
        (LLAMA, "A100-SXM-80GB", ["--devices-per-node", "8"]),
        ("deepseek-ai/DeepSeek-V3", "H100-SXM-80GB", ["--nodes", "2"]),
        (str(TINY_MODEL), "cpu", []),
    ],
    ids=["dense", "older", "experts", "cpu"],
)
def test_for_a_model(
    tmp_path: Path, model: str, device: str, arguments: Sequence[str], snapshot: SnapshotAssertion
) -> None:
    """The planner's first choice, and why; every rule of vLLM is kept."""
    spec = written(tmp_path, "--model", model, "--device", device, *arguments)
    found = plan(spec)
    assert (found.is_feasible, found.unknown) == (True, "")
    text = deployed(tmp_path / "made.yaml")
    assert re.sub(r"id: .*tiny-llama", "id: …/tiny-llama", text) == snapshot


def test_the_strategy_is_the_best_placed_one(tmp_path: Path) -> None:
    """Under the limits that the file proposes, the planner puts the declared one first."""
    written(tmp_path, "--model", LLAMA, "--device", "H100-SXM-80GB", "--devices-per-node", "8")
    path = tmp_path / "made.yaml"
    text = re.sub(r"^( +)# ", r"\1", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)
    assert plan(load_spec(path)).alternatives[0].declared


def test_a_model_that_nobody_knows(tmp_path: Path, capsys: Captured) -> None:
    """It may exist all the same; what it may have been meant as is said."""
    spec = written(tmp_path, "--model", LLAMA[:-1], "--device", "H100-SXM-80GB")
    assert spec.model.id == LLAMA[:-1]
    assert f"is not in the catalogue: did you mean '{LLAMA}'?" in capsys.readouterr().err
    assert "# config: path/to/config.json" in (tmp_path / "made.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "--device: on what does it run? A GPU of the catalogue, or cpu"),
        (["--from-command", "vllm serve m"], "--device: on what does it run?"),
        (["--model", LLAMA, "--device", "L40S"], "hardware.device: the device 'L40S' is not in"),
        (
            ["--model", LLAMA, "--device", "H100-SXM-80GB", "--devices-per-node", "1"],
            "--model: no strategy fits on 1 × H100-SXM-80GB: stage 0: ",
        ),
        (["--model", "m", "--device", "cpu", "--only", "x"], "--only: chooses a server of"),
        (["--from-manifest", "/none/x.yaml"], "/none/x.yaml cannot be read: No such file"),
        (["--from-manifest", "/dev/zero"], "/dev/zero cannot be read: it is not a file"),
    ],
)
def test_a_refusal(arguments: Sequence[str], message: str, capsys: Captured) -> None:
    """One line, and what to give instead."""
    assert main(["init", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"llmdeploy init: {message}")
