"""A secret that somebody has is shown by nothing, whatever goes wrong and however much is asked."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pytest_llmdeploy
from pytest_llmdeploy import secrets
from pytest_llmdeploy.load import runner
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.secrets import MASK, redact, redacted
from pytest_llmdeploy.serving import Command, readiness, start
from pytest_llmdeploy.serving import process as process_module
from pytest_llmdeploy.serving.command import environment
from pytest_llmdeploy.spec import Spec
from tests.checks.scenes import Scene
from tests.serving.processes import REPOSITORY
from tests.specs import STEADY, write_spec

# Not like the real ones, which are known by their form; one that is escaped wherever it is quoted.
PLANTED = {
    "VLLM_API_KEY": 'planted/key\'s "value" zebra-7f3a',
    "HF_TOKEN": "planted-token-91c2",
    "MY_BACKEND": "planted-backend-55d0",
}
# All three have a part that no escaping changes.
TRACES = ("zebra-7f3a", "planted-token", "planted-backend")

LEAKY = f"""
import os, sys
key, token, backend = (os.environ[name] for name in {list(PLANTED)})
print(f"INFO non-default args: {{{{'api_key': ['{{key}}'], 'hf_token': '{{token}}'}}}}", flush=True)
"""
DIES = LEAKY + "raise ValueError(f'401 for Bearer {key}, {token!r} at {backend}')\n"
SERVES = (
    LEAKY
    + """
from aiohttp import web
from tests.standin.server import Server
from tests.standin.settings import Settings
seen = 0
@web.middleware
async def leak(request, handler):
    global seen
    seen += request.path == "/v1/completions"
    if seen > 1 and request.path == "/v1/completions":
        text = f"{request.headers['Authorization']} {token} {backend}"
        return web.json_response({"error": text}, status=500)
    return await handler(request)
app = Server(Settings(tensor_parallel=1)).app()
app.middlewares.insert(0, leak)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, shutdown_timeout=0.1)
"""
)
OWN_TEST = """
import logging, os

def asks(headers):
    raise KeyError(headers)

def test_own(server, recwarn):
    key, everything = os.environ["VLLM_API_KEY"], dict(os.environ)
    print("printed", key)
    logging.getLogger().warning("logged %s", os.environ["HF_TOKEN"])
    assert key == "another"

def test_raises(server):
    asks({**server.endpoint.headers, "backend": os.environ["MY_BACKEND"]})
"""
LOUD = ("-vvv", "--tb=long", "--showlocals", "-rA", "-ojunit_logging=all")
QUICK = [f"-pno:{name}" for name in ("hypothesispytest", "syrupy", "anyio")]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets are in the environment, and nothing takes long."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secrets, "_taken", set())
    monkeypatch.setattr(process_module, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(readiness, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(runner, "_DYING_SECONDS", 0.3)


def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, script: str
) -> tuple[pytest.RunResult, dict[str, Any]]:
    """A run as loud as can be, with `script` in vLLM's place, and its JSON report."""

    def command(spec: Spec, port: int) -> Command:
        added = {**environment(spec), "PYTHONPATH": str(REPOSITORY)}
        return Command((sys.executable, "-c", script, str(port)), added)

    monkeypatch.setattr(start, "launch_command", command)
    pytester.makepyfile(test_own=OWN_TEST)
    write_spec(
        pytester.path / "s.yaml",
        parallel={"tensor": 1},
        serve={
            "served_model_name": "tiny-llama",
            "max_model_len": 512,
            "startup_timeout": "20s",
            "env": {"BACKEND": {"from_env": "MY_BACKEND"}},
        },
        workloads=[{**STEADY, "require": {"ttft": {"p50": "5s"}, "errors": "0%"}}],
    )
    outputs = ("--junitxml=junit.xml", "--deploy-report=out.json")
    result = pytester.runpytest(*QUICK, *LOUD, *outputs, "test_own.py", "--deploy-spec=s.yaml")
    return result, json.loads((pytester.path / "out.json").read_text())["specs"][0]


def assert_nothing_shown(result: pytest.RunResult, folder: Path) -> None:
    """No stream and no file has one, the server's log among them."""
    shown = {"stdout": str(result.stdout), "stderr": str(result.stderr)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    shown |= {path.name: path.read_text(errors="replace") for path in files}
    assert {"junit.xml", "out.json"} <= set(shown)
    assert [
        (name, trace) for name, text in shown.items() for trace in TRACES if trace in text
    ] == []
    assert MASK in shown["stdout"]
    assert MASK in shown["junit.xml"]


def test_a_start_that_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server says as it dies is quoted in every live row, without the secrets in it."""
    result, entry = run(pytester, monkeypatch, DIES)
    assert result.ret == 1
    (log,) = pytester.path.rglob("s.log")
    assert log.read_text().count(MASK) >= len(TRACES)
    assert log.stat().st_mode & 0o077 == 0
    assert "Bearer ***" in str(result.stdout)
    assert any(row["status"] == "ERROR" for row in entry["rows"])
    assert_nothing_shown(result, pytester.path)


def test_a_server_that_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers under load, and tests of the user's own that hold the secrets in their locals."""
    result, entry = run(pytester, monkeypatch, SERVES)
    rows = {row["check"]: row["status"] for row in entry["rows"]}
    assert (rows["model_served"], rows["errors"]) == ("PASS", "FAIL")
    assert MASK in str(entry["traffic"]["steady"]["failures"])
    assert f"printed {MASK}" in str(result.stdout)
    assert f"logged {MASK}" in str(result.stdout)
    assert_nothing_shown(result, pytester.path)


def test_a_module_that_can_not_be_imported(pytester: pytest.Pytester) -> None:
    """An error of the collection is shown without it, and so is the end of an internal one."""
    (pytester.path / "own.py").write_text("import os\nraise OSError(os.environ['HF_TOKEN'])\n")
    pytester.makepyfile(test_own="import os\nkey = os.environ['HF_TOKEN']\nassert key == 'x'\n")
    write_spec(pytester.path / "s.yaml", checks=["own.py"])
    result = pytester.runpytest(*QUICK, *LOUD, "test_own.py", "--deploy-spec=s.yaml")
    result.assert_outcomes(errors=2)
    assert "planted-token" not in str(result.stdout)
    assert "cannot be imported: OSError: ***" in str(result.stdout)


def test_an_internal_error(pytester: pytest.Pytester) -> None:
    """The traceback of a plugin that breaks is shown without it."""
    pytester.makeconftest(
        "import os\ndef pytest_runtest_setup(item): pass\n"
        "def pytest_collection_finish(session): raise OSError(os.environ['HF_TOKEN'])\n"
    )
    write_spec(pytester.path / "s.yaml")
    arguments = ("--deploy-spec=s.yaml", "--deploy-plan-only")
    result = pytester.runpytest_subprocess(*QUICK, *LOUD, *arguments)
    assert "OSError: ***" in str(result.stdout)
    assert "planted-token" not in str(result.stdout) + str(result.stderr)


@pytest.mark.parametrize(
    "text",
    [
        "{} at the start",
        "'{}'",
        'a="{}",b',
        "https://me:{}@host/path",
    ],
)
def test_the_value_of_a_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever stands around it, and in whichever way it is quoted."""
    monkeypatch.setenv("SOME_SECRET", "a b&c'd\"e\\f/ü")
    value = "a b&c'd\"e\\f/ü"
    for written in (
        value,
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        "a%20b%26c%27d%22e%5Cf%2F%C3%BC",
    ):
        assert "b&c" not in redact(text.replace("{}", written))
        assert MASK in redact(text.replace("{}", written))


def test_a_key_of_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of it is a secret, for a log has them one by one."""
    monkeypatch.setenv("TLS_KEY", "-----BEGIN-----\nabcdefghijkl\n  mnopqrstuvwx\n")
    assert redact("read mnopqrstuvwx") == f"read {MASK}"


def test_the_longer_one_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that begins as another does, no end is left."""
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefgh-and-more")
    assert redact("abcdefgh-and-more") == MASK


def test_what_a_spec_takes_is_a_secret() -> None:
    """Whatever the variable is called, from when the server's environment is made."""
    value = PLANTED["MY_BACKEND"]
    assert redact(value) == value
    serve = {"env": {"BACKEND": {"from_env": "MY_BACKEND"}}}
    plain = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "serve": serve}
    assert environment(Spec.model_validate(plain)) == {"BACKEND": value}
    assert redact(value) == MASK


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_" + "aB3" * 11, "token ***"),
        ("sk-proj-" + "x1" * 20 + " is wrong", "*** is wrong"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("'authorization': 'bearer abcdefgh1'", "'authorization': 'bearer ***'"),
        ("Authorization: Basic bWU6aHVudGVyMg==", "Authorization: Basic ***"),
        ("http://me:hunter2@host:1/x", "http://***@host:1/x"),
        ("vllm serve m --api-key hunter2 --port 1", "vllm serve m --api-key *** --port 1"),
        ("--hf-token=hunter2", "--hf-token=***"),
        ("args: {'api_key': ['hunter2'], 'port': 1}", "args: {'api_key': ['***'], 'port': 1}"),
    ],
)
def test_what_looks_like_a_token(text: str, shown: str) -> None:
    """It is hidden wherever it came from."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf_transfer and hf_config_overrides",
        "task-scheduler-with-a-long-name",
        "http://127.0.0.1:8000/v1, user@host",
        "serve.api_key: secrets come from the environment: {VLLM_API_KEY: {from_env: …}}",
        "'--api-key' has its own place",
        "INFO 11-23 [core.py:1] TOKENIZERS_PARALLELISM=false max_tokens: 8192",
        "1,204 requests at 8.0/s",
    ],
)
def test_what_is_none(text: str) -> None:
    """Other texts stay as they are."""
    assert redact(text) == text


@pytest.mark.parametrize("name", ["SMALL_KEY", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "HOSTNAME"])
def test_values_that_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short value, and the value of a variable that is called otherwise."""
    monkeypatch.setenv(name, "short" if name == "SMALL_KEY" else "long enough")
    assert redact("short, long enough") == "short, long enough"


def test_data() -> None:
    """Of data the texts are redacted; keys, numbers and the rest stay."""
    token = PLANTED["HF_TOKEN"]
    data = {"a": [token, 1, None, {"b": f"x {token}"}], "c": (True, 2.5)}
    assert redacted(data) == {"a": [MASK, 1, None, {"b": f"x {MASK}"}], "c": (True, 2.5)}


def test_nothing_prints_a_secret() -> None:
    """What pytest shows of our own records in a traceback."""
    value = PLANTED["MY_BACKEND"]
    endpoint = Endpoint("http://host", value)
    serve = {"env": {"BACKEND": {"from_env": "MY_BACKEND"}}}
    plain = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}, "serve": serve}
    records = [
        Spec.model_validate(plain),
        Command(("vllm",), {"BACKEND": value}),
        endpoint,
        Target(endpoint=endpoint, model="m"),
        replace(Scene()._server(Scene().declared()), endpoint=endpoint),
    ]
    assert [record for record in records if value in repr(record)] == []


def test_no_shell() -> None:
    """Nothing in the package starts a command through one, nor reads YAML or pickles carelessly."""
    package = Path(pytest_llmdeploy.__file__).parent
    found = {
        f"{path.relative_to(package)}: {ast.unparse(node)[:60]}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _is_careless(node)
    }
    assert found == {"load/jobs.py: pickle.loads(body)"}


def _is_careless(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    shell = any(keyword.arg == "shell" for keyword in call.keywords)
    careless = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
    careless |= {
        "eval",
        "exec",
        "yaml.load",
        "pickle.load",
        "pickle.loads",
        "asyncio.create_subprocess_shell",
    }
    return shell or name in careless or "verify=False" in ast.unparse(call)
