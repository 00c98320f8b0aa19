"""A server that is not there, does not start, or is somebody else's."""

from __future__ import annotations

import pytest

from pytest_llmdeploy.serving import readiness, start
from tests.gate_runs import report, statuses
from tests.serving.processes import fake_vllm, python
from tests.specs import write_spec
from tests.standin import Standin


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
    result.stdout.fnmatch_lines(["    → raise serve.gpu_memory_utilization*"])


def test_somebody_elses_server(pytester: pytest.Pytester, standin: Standin) -> None:
    """Attaching to the wrong model fails the row that says so."""
    standin.reset()
    serve = {"served_model_name": "other"}
    write_spec(pytester.path / "s.yaml", serve=serve)
    _, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-url", standin.url)
    row = next(row for row in entry["rows"] if row["check"] == "model_served")
    assert (row["status"], row["result"]) == ("FAIL", "tiny-llama")


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
