"""Asking a vLLM in a process of its own; a small package stands in for it, on the path."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.serving import dry_run as module
from pytest_llmdeploy.serving.dry_run import DryRun, NoDryRunError, dry_run
from tests.plan.deployments import made, tiny
from tests.serving.processes import alive_with, eventually

PARSER = """
import argparse

def make_arg_parser(parser):
    parser.add_argument("--model")
    parser.add_argument("--tensor-parallel-size", type=int)
    for name in ("dtype", "served-model-name", "max-model-len", "kv-cache-memory-bytes"):
        parser.add_argument("--" + name)
    return parser
"""
ENGINE = """
import json, os, sys

class AsyncEngineArgs:
    @classmethod
    def from_cli_args(cls, arguments):
        cls.arguments = arguments
        return cls()

    def create_engine_config(self, usage_context):
        assert usage_context == "server"
{body}
"""
PYDANTIC = """\
import pydantic

class Config(pydantic.BaseModel):
    @pydantic.model_validator(mode="after")
    def check(self):
        raise ValueError("max_model_len (4096) is greater")

Config()
"""
HANGING = """\
import subprocess, time
command = [sys.executable, "-c", "import time; time.sleep(60)", f"marked-{os.getppid()}"]
child = subprocess.Popen(command)
open(os.environ["PIDS"], "w").write(str(child.pid))
time.sleep(60)
"""
Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Writes a vLLM whose configuration does what `body` does."""

    def write(body: str = "pass", device: str = "cpu", init: str = "") -> None:
        files = {
            "__init__": f"__version__ = '0.32.0'\n{init}",
            "platforms": f"class current_platform: device_type = {device!r}",
            "engine/arg_utils": ENGINE.format(body=textwrap.indent(body, " " * 8)),
            "entrypoints/launchers/cli_args": PARSER,
            "usage/usage_lib": "class UsageContext: OPENAI_API_SERVER = 'server'",
            "utils/__init__": "",
            "utils/argparse_utils": "from argparse import ArgumentParser as FlexibleArgumentParser",
        }
        for name, text in files.items():
            path = tmp_path / "fake" / "vllm" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    return write


def test_accepted(fake: Fake) -> None:
    """The arguments are those of the launch, offline where the model is here; what it leaves in its
    TMPDIR is gone afterwards.
    """
    fake(
        "assert self.arguments.tensor_parallel_size == 2\n"
        "assert self.arguments.model.endswith('tiny-llama')\n"
        "assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
        "assert os.environ['VLLM_LOGGING_LEVEL'] == 'ERROR'\n"
        "assert os.environ['MINE'] == 'yes'\n"
        "open(os.path.join(os.environ['TMPDIR'], 'left'), 'w')\n"
    )
    before = set(Path(tempfile.gettempdir()).glob("llmd-*"))
    assert dry_run(tiny(serve={"env": {"MINE": "yes"}})) == DryRun("0.32.0")
    assert set(Path(tempfile.gettempdir()).glob("llmd-*")) <= before


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "raise ValueError('Heads (4) must be divisible by 3.\\nmore')",
            "Heads (4) must be divisi",
        ),
        (PYDANTIC, "max_model_len (4096) is greater"),
        ("assert False, 'not supported'", "not supported"),
        ("raise SystemExit(2)", "its parser gives no reason"),
        ("raise KeyError", "KeyError()"),
    ],
)
def test_refused_in_its_own_words(fake: Fake, body: str, sentence: str) -> None:
    """The sentence, without the names of classes and without what pydantic adds."""
    fake(body)
    found = dry_run(tiny())
    assert found.version == "0.32.0"
    assert found.refusal.startswith(sentence)
    assert "\n" not in found.refusal


def test_refused_by_its_parser(fake: Fake) -> None:
    """A flag that this version does not know."""
    fake()
    found = dry_run(tiny(serve={"seed": 3}))
    assert found.refusal == "unrecognized arguments: --seed=3"


def test_a_vllm_for_other_devices(fake: Fake) -> None:
    """Its rules are others: it is not asked."""
    fake("raise ValueError('asked')")
    with pytest.raises(NoDryRunError, match=r"the vLLM here is for the CPU: .* rules of GPUs"):
        dry_run(made())
    fake("raise ValueError('asked')", device="cuda")
    with pytest.raises(NoDryRunError, match=r"the vLLM here is for GPUs: .* rules of the CPU"):
        dry_run(tiny())
    fake(device="")
    with pytest.raises(NoDryRunError, match="without a device"):
        dry_run(made())


def test_no_vllm(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, or installed and broken."""
    fake(init="import no_such_module")
    with pytest.raises(NoDryRunError, match=r"cannot be imported .*: No module named 'no_such_"):
        dry_run(tiny())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(NoDryRunError, match=r"cannot be imported in this environment$"):
        dry_run(tiny())


def test_a_variable_that_is_not_set(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what vLLM would say with it."""
    fake()
    monkeypatch.delenv("MINE", raising=False)
    with pytest.raises(NoDryRunError, match="the variable MINE is not set here"):
        dry_run(tiny(serve={"env": {"HF_TOKEN": {"from_env": "MINE"}}}))


def test_a_crash_is_no_answer(fake: Fake) -> None:
    """What it said last is told."""
    fake("sys.stdout.write('RuntimeError: no kernel\\n'); sys.stdout.flush(); os._exit(3)")
    found = dry_run(tiny())
    assert not found.refusal
    assert found.problem == "vLLM ended with exit code 3: RuntimeError: no kernel"


def test_one_that_hangs(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is ended after its time, with what it has started."""
    pids = tmp_path / "pids"
    fake(HANGING)
    monkeypatch.setenv("PIDS", str(pids))
    monkeypatch.setattr(module, "_MOST_SECONDS", 2.0)
    began = time.monotonic()
    assert dry_run(tiny()) == DryRun(problem="vLLM did not say so within 2 s")
    assert time.monotonic() - began < 8
    assert pids.exists()
    eventually(lambda: not alive_with(f"marked-{os.getpid()}"))


def test_a_require_that_is_false_is_refused() -> None:
    """Who does not want it leaves it out."""
    changes: dict[str, Any] = {"require": {"dry_run": False}}
    with pytest.raises(ValueError, match="Input should be True"):
        tiny(**changes)
