"""A server on another machine: it is looked at, and put under load only if the spec says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.cli import main
from tests.specs import STEADY, write_spec
from tests.standin import Standin

QUICK = [f"-pno:{name}" for name in ("hypothesispytest", "syrupy", "anyio", "cacheprovider")]
REFUSED = "no load is sent to {}, which is another machine: for the spec to allow it, write attach:"


@pytest.fixture(scope="module")
def running() -> Iterator[Standin]:
    """A server that speaks as vLLM does."""
    with Standin(model="tiny-llama", max_model_len=512) as standin:
        yield standin


@pytest.fixture
def url(running: Standin, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in under an address that leads there, and is none of the loopback's."""
    monkeypatch.setenv("NO_PROXY", "*")
    running.reset()
    return running.url.replace("127.0.0.1", "0.0.0.0")


def entry(pytester: pytest.Pytester, *arguments: str, **overrides: Any) -> dict[str, Any]:
    """The spec's entry in the report of a run."""
    write_spec(pytester.path / "s.yaml", workloads=[STEADY], **overrides)
    given = ("--deploy-spec=s.yaml", "--deploy-report=out.json", *arguments)
    pytester.runpytest(*QUICK, *given)
    found: dict[str, Any] = json.loads((pytester.path / "out.json").read_text())["specs"][0]
    return found


def row(found: dict[str, Any], check: str) -> tuple[str, str]:
    return next((r["status"], r["result"]) for r in found["rows"] if r["check"] == check)


@pytest.mark.parametrize("how", ["spec", "option", "option beside a spec"])
def test_without_permission(
    pytester: pytest.Pytester, running: Standin, url: str, how: str
) -> None:
    """The rows of the traffic say what to write; all others run, with one completion sent."""
    attach = {"spec": {"url": url}, "option": None}.get(how, {"url": "http://elsewhere"})
    options = [] if how == "spec" else [f"--deploy-url={url}"]
    found = entry(pytester, *options, attach=attach)
    status, result = row(found, "ttft")
    assert status == "SKIPPED"
    assert result.startswith(REFUSED.format(url.removeprefix("http://")))
    assert row(found, "model_served") == ("PASS", "tiny-llama")
    assert found["traffic"] is None
    assert len(running.requests()) == 1


@pytest.mark.parametrize("how", ["spec", "option"])
def test_with_permission(pytester: pytest.Pytester, running: Standin, url: str, how: str) -> None:
    """It gets its load, up to the cap; a permission holds for the server of the option, too."""
    attach = {"url": url if how == "spec" else "http://elsewhere", "load": True, "max_requests": 60}
    options = [] if how == "spec" else [f"--deploy-url={url}"]
    found = entry(pytester, *options, attach=attach)
    assert row(found, "ttft")[0] == "INCONCLUSIVE"
    assert found["traffic"]["steady"]["counts"]["ok"] > 0
    assert len(running.requests()) <= 61


def test_a_search_for_the_capacity(
    tmp_path: Path, running: Standin, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`llmdeploy capacity` sends nothing else but load: it says what to write."""
    path = write_spec(tmp_path / "s.yaml", workloads=[STEADY])
    assert main(["capacity", str(path), "--url", url]) == 1
    host = url.removeprefix("http://")
    assert capsys.readouterr().err.startswith(f"llmdeploy capacity: {REFUSED.format(host)}")
    assert len(running.requests()) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://me:hunter2@host", "a secret is not written into a URL: VLLM_API_KEY of the"),
        ("localhost:8000", "found 'localhost:8000': write a URL (http://host:port)"),
    ],
)
def test_an_option_that_is_no_url(pytester: pytest.Pytester, url: str, said: str) -> None:
    """Said before anything runs, without what may be a secret."""
    write_spec(pytester.path / "s.yaml")
    result = pytester.runpytest(*QUICK, "--deploy-spec=s.yaml", f"--deploy-url={url}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--deploy-url: {said}" in str(result.stderr)
    assert "hunter2" not in str(result.stderr)
