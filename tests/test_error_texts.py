"""Every error text that a user can provoke, in one file to be read: `test_error_texts.ambr`.

Tables of mistakes by where they are made. A text that no mistake here brings out fails the last
test: it is to be listed, or it can't happen.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import pytest_llmdeploy
from pytest_llmdeploy.checks import DuplicateCheckError, Registry
from pytest_llmdeploy.cli import main
from pytest_llmdeploy.collection import _module
from pytest_llmdeploy.gate import _import_checks
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.report.files import FORMS
from pytest_llmdeploy.session import Options, Session
from pytest_llmdeploy.spec import SpecError, load_spec
from tests.spec import documents, test_errors, test_extends
from tests.standin import Standin

SOURCE = Path(pytest_llmdeploy.__file__).parent
TEXTS = Path(__file__).parent / "__snapshots__" / "test_error_texts.ambr"

SMALLEST, LOAD, workload = documents.SMALLEST, documents.LOAD, documents.workload
KINDS: Mapping[str, str] = {
    "a list is a text": SMALLEST + "checks: own.py\n",
    "a model's config is a number": SMALLEST.replace("org/model", "org/model, config: 3"),
    "a number is too large": SMALLEST.replace("cpu", "cpu, devices_per_node: 2000"),
    "a text is empty": SMALLEST.replace("org/model", "''"),
    "a text is a number": SMALLEST.replace("org/model", "3"),
    "a text is missing": SMALLEST.replace("org/model", ""),
    "not a number": workload("arrival: {gamma: x}"),
    "not true": SMALLEST + "require: {persistence: false}\n",
    "too many parts of a mix": SMALLEST
    + "workloads: [{name: a, rate: 1/s, mix: ["
    + "{input_tokens: 1, output_tokens: 1}, " * 101
    + "]}]\n",
    "a size of a flag": SMALLEST + "serve: {kv_cache_memory_bytes: 1 GO}\n",
    "a share over one": SMALLEST + "serve: {gpu_memory_utilization: 90}\n",
    "waived by nothing": SMALLEST + "waive: {memory: }\n",
    "balance of one engine": SMALLEST + "require: {balance: {requests: 5%}}\n",
    "balance without workloads": SMALLEST
    + "parallel: {data: 2}\nrequire: {balance: {tokens: 5%}}\n",
    "balance that can't be": SMALLEST + "require: {balance: {tokens: 0%}}\n",
    "driver": SMALLEST + "require: {driver: new}\n",
    "goodput of nothing": workload("require: {goodput: {share: 90%}}"),
    "goodput of all": workload("require: {goodput: {share: 100%, ttft: 1s}}"),
    "indifference": workload("indifference: [1%, 3%]"),
    "min_duration": workload("min_duration: 1h"),
    "workload without a name": SMALLEST + "workloads: [{rate: 1/s}]\n",
    "endpoint": workload("endpoint: chats"),
    "a flag is a text": SMALLEST + "serve: {enable_lora: 'yes'}\n",
    "a file that looks like another": SMALLEST
    + "workloads: [{name: a, input_tokens: {dataset: god.jsonl}, rate: 1/s}]\n",
    "prefix of texts": workload("shared_prefix: -1"),
    "lognormal of nothing": workload("").replace(
        "input_tokens: 8", "input_tokens: {lognormal: {mean: 1, sigma: 0, max: 1, min: 5}}"
    ),
    "two kinds of lengths": workload("").replace(
        "input_tokens: 8", "input_tokens: {fixed: 1, uniform: [1, 2]}"
    ),
    "range of three": workload("").replace("input_tokens: 8", "input_tokens: {uniform: [1, 2, 3]}"),
    "range of texts": workload("").replace("input_tokens: 8", "input_tokens: {uniform: [a, 2]}"),
    "weights of nothing": SMALLEST
    + "workloads: [{name: a, rate: 1/s, mix: [{input_tokens: 1, output_tokens: 1, weight: x}]}]\n",
}


def told(folder: Path, error: BaseException | str) -> list[str]:
    """The lines of an error, without the folder and the machine."""
    text = str(error).replace(f"{folder}/", "").replace(str(folder), "…")
    return text.replace(f"{SOURCE.parent}/", "").splitlines()


def test_of_a_spec(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    """Mistakes in one file."""
    table = {**test_errors.BROKEN, **KINDS}
    found = {name: test_errors.errors(tmp_path, text) for name, text in table.items()}
    assert {name: text.splitlines() for name, text in found.items()} == snapshot


def test_of_a_spec_over_others(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    """Mistakes in files that extend each other."""
    found = {}
    for number, (name, files) in enumerate(test_extends.BROKEN.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = test_extends.write(folder, files)
        with pytest.raises(SpecError) as raised:
            load_spec(path)
        found[name] = told(folder, raised.value)
    assert found == snapshot


HEAD = (
    "from pytest_llmdeploy import Bytes, Duration, Expect, Fraction, Plan, check\nimport pytest\n"
)
CHECK = '@check("Own", require="team.limit")\ndef own(required: {}, expect: Expect): ...\n'
OWN = SMALLEST + "checks: [own.py]\nrequire: {team: {limit: 5}}\n"
COLLECTED: Mapping[str, tuple[str, str]] = {
    "a file that is not there": (SMALLEST + "checks: [owm.py]\n", HEAD),
    "a folder": (SMALLEST + "checks: [.]\n", HEAD),
    "not Python": (OWN, "def x(:\n"),
    "an import that fails": (OWN, "import nowhere_to_be_found\n"),
    "no expect": (OWN, HEAD + "@check('Own')\ndef own(plan: Plan): ...\n"),
    "two of a name": (OWN, HEAD + "@check('Own')\ndef feasible(expect: Expect): ...\n"),
    "a fixture of the pipeline": (
        OWN,
        HEAD + CHECK.format("int") + "@pytest.fixture\ndef plan(): ...\n",
    ),
    "another type": (OWN, HEAD + CHECK.format("str")),
    "a duration without a unit": (OWN, HEAD + CHECK.format("Duration")),
    "a share over one": (OWN, HEAD + CHECK.format("Fraction")),
    "another key": (OWN.replace("limit", "limits"), HEAD + CHECK.format("int")),
    "another namespace": (OWN.replace("team", "teem"), HEAD + CHECK.format("int")),
    "no value": (OWN.replace("{limit: 5}", "3"), HEAD + CHECK.format("int")),
    "nobody's key": (SMALLEST + "require: {memry: 5%}\n", HEAD),
    "nothing to judge it": (SMALLEST + "require: {team: }\n", HEAD),
    "a waiver of another word": (SMALLEST + "waive: {feasibel: it is}\n", HEAD),
    "introspection of a server elsewhere": (SMALLEST + "attach: {url: http://a}\n", HEAD),
}


def test_of_own_checks(
    pytester: pytest.Pytester, tmp_path: Path, snapshot: SnapshotAssertion
) -> None:
    """Mistakes that are found when the checks of a spec are collected."""
    config = pytester.parseconfigure()
    found = {}
    for number, (name, (spec, module)) in enumerate(COLLECTED.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "own.py").write_text(module)
        (folder / "spec.yaml").write_text(spec)
        session = Session(
            root=folder,
            paths=[folder / "spec.yaml"],
            options=Options(introspect="elsewhere" in name),
            registry=Registry(),
            import_module=lambda path: _import_checks(config, path),
            log_folder=folder,
        )
        with pytest.raises(SpecError) as raised:
            # What collecting the file does.
            _module(folder / "spec.yaml", session.items(folder / "spec.yaml"))
        found[name] = told(folder, raised.value)
    assert found == snapshot


OPTIONS: Sequence[Sequence[str]] = (
    ["--deploy-spec", "nowhere/*.yaml"],
    ["--deploy-spec", "spek.yaml"],
    ["--deploy-spec", "spec.yaml", "--deploy-url", "localhost:8000"],
    ["--deploy-spec", "spec.yaml", "--deploy-url", "http://me:hunter2@a"],
    ["--deploy-spec", "*.yaml", "--deploy-url", "http://a"],
    ["--deploy-spec", "spec.yaml", "--deploy-url", "http://a", "--deploy-introspect"],
    ["--deploy-spec", "spec.yaml", "--deploy-report", "out.pdf"],
    ["--deploy-spec", "spec.yaml", "--deploy-baseline", "nowhere.json"],
    ["--deploy-spec", "spec.yaml", "--deploy-baseline", "spec.yaml"],
    ["--deploy-spec", "spec.yaml", "--deploy-baseline", "of_another.json"],
    ["--deploy-spec", "spec.yaml", "--deploy-baseline", "of_another_version.json"],
    ["--deploy-spec", "spec.yaml", "--dist", "load"],
    ["--deploy-spec", "spec.yaml", "--reruns", "2"],
    ["--deploy-spec", "spec.yaml", "-o", "cache_dir=spec.yaml"],
)


def test_of_options(pytester: pytest.Pytester, snapshot: SnapshotAssertion) -> None:
    """Options of pytest that don't go together, or lead nowhere."""
    (pytester.path / "spec.yaml").write_text(SMALLEST)
    (pytester.path / "other.yaml").write_text(SMALLEST)
    entry = '{"name": "speck", "verdict": "READY"}'
    for name, version in (("of_another", 1), ("of_another_version", 2)):
        document = f'{{"schema_version": {version}, "specs": [{entry}]}}'
        (pytester.path / f"{name}.json").write_text(document)
    found = {}
    for options in OPTIONS:
        with pytest.raises(pytest.UsageError) as raised:
            pytester.parseconfigure(*options)
        text = str(raised.value).replace(", ".join(FORMS), ".json, …")
        found[" ".join(options)] = told(pytester.path, text)
    assert found == snapshot


def test_of_an_extra_that_is_not_there(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    """A form that takes more packages than there are."""
    (pytester.path / "spec.yaml").write_text(SMALLEST)
    monkeypatch.setattr("pytest_llmdeploy.report.files.find_spec", lambda _name: None)
    with pytest.raises(pytest.UsageError) as raised:
        pytester.parseconfigure("--deploy-spec", "spec.yaml", "--deploy-report", "out.html")
    assert told(pytester.path, str(raised.value)) == snapshot


def test_of_two_plugins(snapshot: SnapshotAssertion) -> None:
    """Checks of two packages with the same name."""
    modules = []
    for name in ("one", "two"):
        module = type(pytest)(name)
        exec(HEAD + "@check('Own')\ndef own(expect: Expect): ...\n", vars(module))  # noqa: S102
        modules.append(module)
    with pytest.raises(DuplicateCheckError) as raised:
        Registry(modules)
    assert str(raised.value) == snapshot


def test_of_a_package(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    """One that offers checks which can't be imported."""
    dist = pytester.path / "fleet-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet\n")
    (dist / "entry_points.txt").write_text("[pytest_llmdeploy.checks]\na = nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(pytester.path))
    (pytester.path / "spec.yaml").write_text(SMALLEST)
    with pytest.raises(pytest.UsageError) as raised:
        pytester.parseconfigure("--deploy-spec=spec.yaml")
    assert str(raised.value) == snapshot


def test_of_a_rerun(pytester: pytest.Pytester, snapshot: SnapshotAssertion) -> None:
    """A mark that would rerun a live check."""
    mark = "@pytest.mark.flaky(reruns=2)\n@check('Own')\ndef own(server, expect): ...\n"
    (pytester.path / "own.py").write_text(f"import pytest\n{HEAD}{mark}")
    (pytester.path / "spec.yaml").write_text(SMALLEST + "checks: [own.py]\n")
    result = pytester.runpytest("-pno:cacheprovider", "--deploy-spec=spec.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line.startswith("ERROR")] == snapshot


H100 = ["--device", "H100-SXM-80GB"]
COMMANDS: Sequence[Sequence[str]] = (
    [],
    ["plans", "spec.yaml"],
    ["plan", "spek.yaml"],
    ["plan", "modle.yaml"],
    ["plan", "spec.yaml", "--graph", "png"],
    ["plan", "spec.yaml", "--json", "--repair"],
    ["plan", "gpu.yaml", "--second-opinion"],
    ["capacity", "spec.yaml", "--url", "localhost"],
    ["capacity", "spec.yaml", "--url", "http://a"],
    ["capacity", "load.yaml", "--url", "http://a", "--workload", "stedy"],
    ["capacity", "load.yaml", "--url", "http://a"],
    ["capacity", "loads.yaml", "--url", "http://a"],
    ["capacity", "load.yaml", "--url", "http://a", "--precision", "0"],
    ["capacity", "load.yaml", "--url", "http://a", "--precision", "x"],
    ["capacity", "load.yaml", "--url", "http://a", "--rates", "1,0"],
    ["capacity", "load.yaml", "--url", "http://a", "--time", "9"],
    ["schema", "specs"],
    ["completion", "fish"],
    ["completion", "bash"],
    ["init"],
    ["init", "--model", "m", "--from-url", "http://a"],
    ["init", "--model", "m"],
    ["init", "--model", "m", "--device", "H100"],
    ["init", "--model", "m", "--device", "cpu", "--only", "x"],
    ["init", "--model", "m", "--device", "cpu", "--nodes", "0"],
    ["init", "--model", "m", "--device", "cpu", "--nodes", "two"],
    ["init", "--model", "m", "--device", "cpu", "-o", "spec.yaml"],
    ["init", "--model", "m", "--device", "cpu", "-o", "none/spec.yaml"],
    ["init", "--model", "meta-llama/Meta-Llama-3-70B-Instruct", *H100, "--devices-per-node", "1"],
    ["init", "--from-url", "localhost", *H100],
    ["init", "--from-url", "http://127.0.0.1:9", *H100],
    ["init", "--from-manifest", "none.yaml", *H100],
    ["init", "--from-manifest", "spec.yaml", *H100],
    ["init", "--from-manifest", "broken.yaml", *H100],
    ["init", "--from-manifest", "deep.yaml", *H100],
    ["init", "--from-manifest", "bytes.yaml", *H100],
    ["init", "--from-manifest", "large.yaml", *H100],
    ["init", "--from-manifest", "two.yaml", *H100],
    ["init", "--from-manifest", "two.yaml", *H100, "--only", "c"],
    ["init", "--from-manifest", "two.yaml", "--only", "a"],
    ["init", "--from-manifest", "two.yaml", "--only", "b"],
    ["init", "--from-command", "vllm serve", *H100],
    ["init", "--from-command", "run m", *H100],
    ["init", "--from-command", "vllm serve m | tee log", *H100],
    ["init", "--from-command", "vllm serve 'm", *H100],
    ["init", "--from-command", "vllm serve m n", *H100],
    ["init", "--from-command", "vllm serve m --sed 1", *H100],
    ["init", "--from-command", "vllm serve m --seed", *H100],
    ["init", "--from-command", "vllm serve m --seed=$SEED", *H100],
    ["init", "--from-command", "A=x$B vllm serve m", *H100],
    ["init", "--from-command", "vllm serve m -tp 0", *H100],
    ["init", "--from-command", "vllm serve m -tp x", *H100],
    ["init", "--from-command", "vllm serve m --gpu-memory-utilization 2", *H100],
)
SERVER = (
    "{{kind: Pod, metadata: {{name: {}}}, spec: {{nodeSelector: {{nvidia.com/gpu.product: {}}},"
    " containers: [{{image: vllm, args: [m]}}]}}}}\n"
)
FILES: Mapping[str, bytes] = {
    "spec.yaml": SMALLEST.encode(),
    "modle.yaml": SMALLEST.replace("model", "modle").encode(),
    "load.yaml": (SMALLEST + LOAD).encode(),
    "loads.yaml": (SMALLEST + LOAD[:-2] + ", " + LOAD[12:].replace("a,", "b,")).encode(),
    "gpu.yaml": (SMALLEST + LOAD)
    .replace("org/model", "meta-llama/Meta-Llama-3-8B-Instruct")
    .replace("cpu", "H100-SXM-80GB")
    .encode(),
    "broken.yaml": b"a: [\n",
    "deep.yaml": b"[" * 5000,
    "bytes.yaml": b"\xff\xfe\0\xd8",
    "large.yaml": b"#" * 10_000_001,
    "two.yaml": (SERVER.format("a", "Tesla-T4") + "---\n" + SERVER.format("b", "")).encode(),
}


def test_of_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    snapshot: SnapshotAssertion,
) -> None:
    """What `llmdeploy` refuses: the last line on stderr, the others say how it is used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    # Neither extra is installed.
    for name in ("shtab", "aiconfigurator_core"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, raw in FILES.items():
        (tmp_path / name).write_bytes(raw)
    found = {}
    for arguments in COMMANDS:
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(str(error.code))
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), arguments
        found[" ".join(arguments)] = told(tmp_path, said.err.splitlines()[-1])
    assert found == snapshot


def test_of_servers(
    standin: Standin,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    snapshot: SnapshotAssertion,
) -> None:
    """What is said of a server that answers, but not all that is needed."""
    found = {}
    assert main(["init", "--from-url", standin.url]) == 2
    found["no device"] = capsys.readouterr().err
    monkeypatch.setattr(Endpoint, "models", lambda _: [])
    assert main(["init", "--from-url", standin.url]) == 2
    found["no model"] = capsys.readouterr().err
    assert {name: text.replace(standin.url, "URL") for name, text in found.items()} == snapshot


USER_ERRORS = {"SpecError", "FaultError", "RefusedError", "UsageError", "CommandLineError"}
SAID_BY = ("spec", "cli", "gate.py", "session.py", "checks/requirements.py")


def said_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line of every raised error for users, and the longest fixed piece of its text."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        named = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if ast.unparse(node.exc.func).rpartition(".")[2] in USER_ERRORS:
                text = ast.unparse(node.exc)
                used = [value for name, value in named.items() if re.search(rf"\b{name}\b", text)]
                pieces = [
                    part.value
                    for value in (node.exc, *used)
                    for part in ast.walk(value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                yield node.lineno, max(pieces, key=len, default="")


def test_every_text_is_listed() -> None:
    """The longest fixed piece of each text that the code raises is in the file."""
    listed = " ".join(TEXTS.read_text().replace("\\'", "'").split())
    missing = []
    for place in SAID_BY:
        path = SOURCE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for line, piece in said_in(ast.parse(file.read_text())):
                if " ".join(piece.split()) not in listed:
                    missing.append(f"{file.relative_to(SOURCE)}:{line}: {piece}")
    assert missing == []
