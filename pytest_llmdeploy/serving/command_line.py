"""From a `vllm serve …` line, as somebody runs it, to the keys of a spec.

What the spec has no place for is left out, and noted.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, Self

from pydantic import ValidationError

from pytest_llmdeploy.serving.command import LAYERS_VARIABLE, MODEL_FLAGS, PARALLEL_FLAGS
from pytest_llmdeploy.serving.options import (
    CHOSEN_BY_VLLM,
    LIVE,
    CommandLineError,
    Given,
    given_options,
    keyed,
    merge,
    unknown_variable,
    value_of,
)
from pytest_llmdeploy.spec.model import Serve

__all__ = ["CommandLineError", "SpecData", "spec_from_command"]


@dataclass(frozen=True)
class SpecData:
    """The mapping of a spec, and what of the line is not in it or means something else there."""

    data: Mapping[str, Any]
    notes: tuple[str, ...]


_MODULE = "vllm.entrypoints.openai.api_server"
_IMAGE = re.compile(r"(?:[\w.-]+/)*vllm-openai(?:-\w+)*(?:[:@].*)?", re.ASCII)
_STARTERS = re.compile(r"env|exec|nohup|python[\d.]*", re.ASCII)
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL | re.ASCII)

_SURROGATE = re.compile("[\ud800-\udfff]")
_VARIABLE = re.compile(LIVE + r"(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)
_JOIN = r"(?P<join>\\\r?\n)|(?P<escaped>\\.)|(?P<dollar>\$(?=[A-Za-z_{(]))"
_IN_QUOTES = re.compile(_JOIN, re.DOTALL)
_SHELL = re.compile(
    rf"(?P<single>'[^']*')|(?P<double>\"(?:\\.|[^\"\\])*\")|{_JOIN}|(?P<operator>[();<>|&`])",
    re.DOTALL,
)

_LEFT_OUT = {
    "host": "the gate binds to 127.0.0.1",
    "port": "the gate chooses a free port",
    "uds": "the gate talks to the server over TCP",
    "api_key": "a secret is not written into a spec; where the server needs one, write "
    "serve.env: {VLLM_API_KEY: {from_env: VLLM_API_KEY}}",
    "hf_token": "a secret is not written into a spec; where the model needs one, write "
    "serve.env: {HF_TOKEN: {from_env: HF_TOKEN}}",
}
_DTYPES = {"half": "float16", "float": "float32"}


def spec_from_command(
    command: str | Sequence[str],
    device: str | Mapping[str, Any],
    *,
    devices_per_node: int | None = None,
    nodes: int | None = None,
) -> SpecData:
    """The spec that `command` means on `device`.

    Args:
        command: a shell line, or its words: `vllm serve MODEL …`, or the server's module or
            image with `--model MODEL`, with assignments to the environment in front.
        device: a name of the GPU catalogue, `cpu`, or the spec's inline mapping.
        devices_per_node: by default as many as the strategy takes, up to eight.
        nodes: by default as many as that makes.

    Raises:
        CommandLineError: for another program, an unknown flag, or a value that it does not take.
    """
    words = _words(command) if isinstance(command, str) else list(command)
    if odd := next((word for word in words if not word.isascii() and _SURROGATE.search(word)), ""):
        raise CommandLineError(f"found {odd!r}: not a text in UTF-8")
    before, arguments = _program(words)
    reading = _Reading().environment(before).arguments(arguments)
    sections = reading.sections()
    hardware = {"device": device, **_devices(sections, devices_per_node, nodes)}
    data = {"version": 1, "model": sections.pop("model"), "hardware": hardware, **sections}
    return SpecData(data, tuple(reading.notes))


def _devices(
    sections: Mapping[str, Any], per_node: int | None, nodes: int | None
) -> Mapping[str, int]:
    parallel, serve = sections.get("parallel", {}), sections.get("serve", {})
    axes = ("tensor", "pipeline", "data", "prefill_context")
    # Sizes that are not sizes are for the spec to refuse.
    wanted = max(1, math.prod(parallel.get(axis, 1) for axis in axes))
    if (local := serve.get("data_parallel_size_local", 0)) > 0:
        nodes = nodes or -(-parallel.get("data", 1) // local)
    if (said := serve.get("nnodes", 0)) > 0:
        nodes = nodes or said
    per_node = per_node or (-(-wanted // nodes) if nodes else min(8, wanted))
    return {"devices_per_node": per_node, "nodes": nodes or -(-wanted // per_node)}


def _words(line: str) -> list[str]:
    """The words of a shell line, with `LIVE` in place of dollar signs that begin a variable."""
    try:
        return shlex.split(_SHELL.sub(_without_shell, line))
    except ValueError as error:
        raise CommandLineError(f"a quote of the line has no end: {error}") from None


def _without_shell(piece: re.Match[str]) -> str:
    match piece.lastgroup:
        case "join":
            return ""
        case "dollar":
            return LIVE
        case "double":
            return _IN_QUOTES.sub(_without_shell, piece[0])
        case "operator":
            raise CommandLineError(
                f"found {piece[0]!r}: give the one command, without what the shell does around it"
            )
    return piece[0]


def _program(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What stands before the server's program, and its arguments."""
    for index, (word, following) in enumerate(zip_longest(words, words[1:])):
        if PurePath(word).name == "vllm" and following == "serve":
            return words[:index], words[index + 2 :]
        if (word, following) == ("-m", _MODULE):
            return words[:index], words[index + 2 :]
        if _IMAGE.fullmatch(word):
            return words[:index], words[index + 1 :]
    start = shlex.join(words[:2]).replace(LIVE, "$")
    raise CommandLineError(
        f"found {start!r}: write `vllm serve MODEL --flag …`, or `python -m {_MODULE} --model …`"
    )


@dataclass
class _Reading:
    """What was read so far: by the spec's words, and notes on what is not in them."""

    notes: list[str] = field(default_factory=list)
    model: str | None = None
    layers: list[int] | None = None
    env: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)

    def environment(self, words: Iterable[str]) -> Self:
        others = []
        for word in words:
            if assignment := _ASSIGNMENT.fullmatch(word):
                self._variable(assignment[1], assignment[2])
            elif not _STARTERS.fullmatch(PurePath(word).name):
                others.append(word.replace(LIVE, "$"))
        if others:
            self.notes.append(f"left out what stands before the server: {shlex.join(others)}")
        return self

    def _variable(self, name: str, value: str) -> None:
        if other := _VARIABLE.fullmatch(value):
            self.env[name] = {"from_env": other[1] or other[2]}
        elif LIVE in value:
            raise unknown_variable(f"{name}={value}")
        elif name == LAYERS_VARIABLE and re.fullmatch(r"\d{1,9}(,\d{1,9})*", value, re.ASCII):
            self.layers = [int(part) for part in value.split(",")]
        elif _is_secret(name):
            self.env[name] = {"from_env": name}
            self.notes.append(f"{name}: a secret is not written into a spec, set it when testing")
        else:
            self.env[name] = value

    def arguments(self, arguments: Iterable[str]) -> Self:
        for given in given_options(arguments):
            if isinstance(given, str):
                self._model(given)
            elif given.flag.name == "model":
                self._model(given.texts[0])
            elif reason := _LEFT_OUT.get(given.flag.name):
                self.notes.append(f"left out {given.option}: {reason}")
            else:
                self._flag(given)
        return self

    def _model(self, model: str) -> None:
        if self.model is not None:
            raise CommandLineError(
                f"found {model!r} beside the model {self.model!r}: a value follows its flag"
            )
        self.model = model

    def _flag(self, given: Given) -> None:
        name, earlier = given.flag.name, self.forms.get(given.flag.name)
        form = self.forms[name] = given.option.partition(".")[0] + "." if given.path else "whole"
        if given.flag.kind == "repeated":
            self.values.setdefault(name, []).append(value_of(given))
            return
        if earlier not in {None, form}:
            # VLLM would take the one and drop the other.
            raise given.error("write all of this value in one form, whole or key by key")
        if given.path:
            merge(self.values.setdefault(name, {}), keyed(given))
            return
        if earlier:
            self.notes.append(f"{given.option} is given twice: the last one counts")
        self.values[name] = value_of(given)

    def sections(self) -> dict[str, Any]:
        """Model, parallel and serve, as far as the line says something of them."""
        if self.model is None:
            raise CommandLineError("the line names no model: write `vllm serve MODEL …`")
        model: dict[str, Any] = {"id": self.model}
        parallel: dict[str, Any] = {}
        serve: dict[str, Any] = {}
        for name, value in self.values.items():
            if value is None:
                continue
            if name in MODEL_FLAGS:
                model[name] = _DTYPES.get(value, value)
            elif name in PARALLEL_FLAGS:
                parallel[PARALLEL_FLAGS[name]] = value
            else:
                serve.update(self._fitted(name, value))
        parallel.update({"layers": self.layers} if self.layers else {})
        serve.update({"extra_args": self.extra} if self.extra else {})
        serve.update({"env": self.env} if self.env else {})
        found = {"model": model, "parallel": parallel, "serve": serve}
        return {name: section for name, section in found.items() if section}

    def _fitted(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        """The key under `serve` with its value, if the spec has a place for it there."""
        option = "--" + name.replace("_", "-")
        if name == "max_model_len" and value == CHOSEN_BY_VLLM:
            self.extra.append(f"{option}={value}")
            self.notes.append(f"{option}: vLLM chooses the length; the plan takes the model's own")
        elif name == "served_model_name":
            yield name, value[0]
            if others := value[1:]:
                self.notes.append(f"{option}: left out all but the first name: {', '.join(others)}")
        else:
            yield name, value
            if name == "config":
                self.notes.append(f"{option}: what {value} says is not in the spec")


def _is_secret(name: str) -> bool:
    """Whether the spec refuses to hold a value for the variable `name`."""
    try:
        Serve.model_validate({"env": {name: "text"}})
    except ValidationError:
        return True
    return False
