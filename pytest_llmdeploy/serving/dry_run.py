"""Whether the vLLM that is installed here accepts a spec's command line; nothing is launched."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmdeploy.serving import acceptance
from pytest_llmdeploy.serving.command import LaunchError, environment, flags
from pytest_llmdeploy.serving.diagnosis import diagnose
from pytest_llmdeploy.spec import Spec

_MOST_SECONDS = 120.0
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


class NoDryRunError(Exception):
    """Nobody here can say whether vLLM accepts the spec; the text says why."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a `version` of vLLM said: nothing (it accepts), or in its own words its `refusal`;
    `problem` says why it came to neither.
    """

    version: str = ""
    refusal: str = ""
    problem: str = ""


def dry_run(spec: Spec) -> DryRun:
    """What vLLM's own parser and configuration say of the arguments that a launch would have.

    Raises:
        NoDryRunError: when there is no vLLM for the spec's devices here, or a variable that the
            spec takes from the environment is not set.
    """
    if importlib.util.find_spec("vllm") is None:
        raise NoDryRunError("vLLM cannot be imported in this environment")
    try:
        arguments = [f"--model={spec.model_folder or spec.model.id}", *flags(spec)]
        added = {**_QUIET, **environment(spec)}
    except LaunchError as error:
        raise NoDryRunError(str(error)) from None
    if spec.model_folder is not None:
        added["HF_HUB_OFFLINE"] = "1"
    wanted = spec.hardware.device.platform
    with tempfile.TemporaryDirectory(prefix="llmd-") as folder:
        answer = Path(folder) / "answer.json"
        added["TMPDIR"] = folder
        problem = _run([str(answer), wanted, *arguments], added)
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return DryRun(problem=problem)
    if "missing" in found:
        raise NoDryRunError(f"vLLM cannot be imported in this environment: {found['missing']}")
    if found["platform"] != wanted:
        there = {"cpu": "for the CPU", "": "without a device"}.get(found["platform"], "for GPUs")
        devices = {"cpu": "the CPU", "cuda": "GPUs"}[wanted]
        raise NoDryRunError(
            f"the vLLM here is {there}: it does not judge by the rules of {devices}"
        )
    return DryRun(found["version"], found["refusal"])


def _run(arguments: list[str], added: Mapping[str, str]) -> str:
    """Runs it to its end; what is wrong when it has left no answer."""
    # Without -P, the files beside it would stand in the way of vLLM's imports.
    command = [sys.executable, "-P", acceptance.__file__, *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **added},
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return f"vLLM did not say so within {_MOST_SECONDS:g} s"
        finally:
            # Also what it started: vLLM looks at models in processes of their own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    found = diagnose(said.decode("utf-8", "replace"), process.returncode)
    return f"vLLM ended with exit code {process.returncode}: {found.line}"
