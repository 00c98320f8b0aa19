"""`llmdeploy init --from-manifest`: the vLLM server in a rendered Kubernetes manifest."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.draft import Draft
from pytest_llmdeploy.cli.pods import Pod, pods
from pytest_llmdeploy.facts import gpus
from pytest_llmdeploy.serving.command_line import CommandLineError, spec_from_command
from pytest_llmdeploy.spec import nearest, nearest_file
from pytest_llmdeploy.spec.bounded import read_bounded

_MOST_BYTES = 10_000_000
_PROPOSALS = {"attach": ["url: http://vllm:8000  # adjust: to judge the one that runs there"]}
_PRODUCT, _GPUS = "nvidia.com/gpu.product", "nvidia.com/gpu"
_SHELLS = {"sh", "bash", "ash", "dash"}
_SERVER = re.compile(r"\bvllm['\",\s]+serve\b|vllm\.entrypoints")
_IMAGE = re.compile(r"(?:.*/)?[\w.-]*vllm[\w.-]*(?:[:@].*)?", re.ASCII)
# A script, piece by piece: what is quoted is no end of a command.
_PIECE = re.compile(
    r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|(?P<to>\d?>>?\s*(?:&\d|[^\s;|&]+))|(?P<end>;|&&|\|\||\||&|\n)|.",
    re.DOTALL,
)
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", re.ASCII)
_SHELL_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)
_PLAIN = re.compile(r"[\w./:@%+=,-]+", re.ASCII)


def draft_of_manifest(
    file: str,
    device: str | None,
    *,
    only: str | None,
    devices_per_node: int | None,
    nodes: int | None,
) -> Draft:
    """The spec of the one vLLM server in `file`, or of the one called `only`.

    Raises:
        RefusedError: when there is none, or several, or it does not say enough.
    """
    pod, container = _chosen(list(_servers(_documents(file))), only, file)
    notes: list[str] = list(pod.notes)
    line = " ".join([*_environment(container, notes), _command(pod, container)])
    per_node, of_nodes = devices_per_node or _gpus(container), nodes or pod.nodes
    try:
        found = spec_from_command(
            line,
            device or _device(pod),
            devices_per_node=per_node,
            nodes=of_nodes if of_nodes > 1 else nodes,
        )
    except CommandLineError as error:
        raise RefusedError(f"{pod.title}: {error}") from None
    about = f"as {pod.title} says"
    if pod.replicas > 1:
        about += f"; it runs {pod.replicas} of these"
    if per_node is None:
        notes.append(f"no limit on {_GPUS}: as many devices as the strategy takes")
    return Draft(found.data, about, (*notes, *found.notes), proposals=_PROPOSALS)


def _documents(file: str) -> Sequence[Any]:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        raw = sys.stdin.buffer.read(_MOST_BYTES + 1) if file == "-" else _read(file)
        return list(yaml.load_all(raw, Loader=loader))
    except OSError as error:
        hint = nearest_file(Path(file))
        raise RefusedError(f"{file} cannot be read: {error.strerror}{hint}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}: " if mark else " "
        raise RefusedError(f"{file}:{line}is not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RefusedError(f"{file}: is not YAML: {reason}") from None


def _read(file: str) -> bytes:
    raw = read_bounded(Path(file), _MOST_BYTES)
    if len(raw) > _MOST_BYTES:
        raise RefusedError(f"{file} is larger than {_MOST_BYTES:,} bytes")
    return raw


def _servers(documents: Sequence[Any]) -> Iterator[tuple[Pod, Mapping[str, Any]]]:
    for pod in pods(documents):
        for container in pod.containers:
            image = str(container.get("image") or "")
            words = _words(container)
            if _SERVER.search(" ".join(words)) or (
                _IMAGE.fullmatch(image) and not container.get("command")
            ):
                yield pod, container


def _chosen(
    servers: Sequence[tuple[Pod, Mapping[str, Any]]], only: str | None, file: str
) -> tuple[Pod, Mapping[str, Any]]:
    names = [pod.name for pod, _ in servers]
    if not servers:
        raise RefusedError(
            f"{file}: no vLLM server in it: no container of a Deployment, StatefulSet, Pod, "
            "LeaderWorkerSet, InferenceService or LLMInferenceService runs `vllm serve`"
        )
    if only is not None and only not in names:
        raise RefusedError(f"--only: no server is called {only!r}: {nearest(only, names)}")
    if only is None and len(set(names)) > 1:
        raise RefusedError(
            f"{file} has several servers: choose one with --only: {', '.join(names)}"
        )
    return next(server for server in servers if only in {None, server[0].name})


def _words(container: Mapping[str, Any]) -> list[str]:
    given = [*(container.get("command") or ()), *(container.get("args") or ())]
    return [str(word) for word in given]


def _variables(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for entry in container.get("env") or ():
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            yield entry


def _environment(container: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    """Assignments in the words of a shell; the value of a secret is the tester's variable."""
    for entry in _variables(container):
        name, source = entry["name"], entry.get("valueFrom") or {}
        if "secretKeyRef" in source:
            yield f'{name}="${{{name}}}"'
        elif source:
            notes.append(f"left out {name}: its value comes from {next(iter(source))}")
        else:
            text = "" if entry.get("value") is None else str(entry["value"])
            yield f"{name}={shlex.quote(_expanded(text, _values(container)))}"
    if container.get("envFrom"):
        notes.append("left out envFrom: what it holds is not in the manifest")


def _values(container: Mapping[str, Any]) -> Mapping[str, str]:
    """The variables that the manifest gives a value."""
    return {
        entry["name"]: str(entry["value"])
        for entry in _variables(container)
        if entry.get("value") is not None
    }


def _command(pod: Pod, container: Mapping[str, Any]) -> str:
    """The server's command as a shell line, with what is known of variables."""
    values = {**pod.variables, **_values(container)}
    words = [_expanded(word, values) for word in _words(container)]
    if words and Path(words[0]).name in _SHELLS:
        script = next((word for word in words[1:] if not word.startswith("-")), "")
        return _of_script(script, values)
    if not _SERVER.search(" ".join(words)):
        # The entry point of vLLM's image.
        words = ["vllm", "serve", *words]
    return shlex.join(words)


def _of_script(script: str, values: Mapping[str, str]) -> str:
    """The command of a script that starts the server; the last one, should there be several."""
    parts = [""]
    for piece in _PIECE.finditer(script):
        if piece["end"]:
            parts.append("")
        elif piece["to"] or piece[0] == "\\\n":
            parts[-1] += " "
        else:
            parts[-1] += piece[0]
    found = [part for part in parts if _SERVER.search(part)]
    line = found[-1].strip() if found else script

    def known(match: re.Match[str]) -> str:
        value = values.get(match[1] or match[2], "")
        return value if _PLAIN.fullmatch(value) else match[0]

    return _SHELL_REFERENCE.sub(known, line)


def _expanded(text: str, values: Mapping[str, str]) -> str:
    """A text in which Kubernetes has put the variables that it knows: `$(NAME)`."""
    return _REFERENCE.sub(lambda match: values.get(match[1], match[0]), text)


def _gpus(container: Mapping[str, Any]) -> int | None:
    resources = container.get("resources") or {}
    for kind in ("limits", "requests"):
        text = str((resources.get(kind) or {}).get(_GPUS, ""))
        if text.isdecimal() and 0 < len(text) < 5 and int(text):  # noqa: PLR2004 - not a number to plan with
            return int(text)
    return None


def _device(pod: Pod) -> str:
    """The catalogue's name of the GPU that the pod asks for."""
    product = pod.selected(_PRODUCT)
    known = {gpu.nvml_name.replace(" ", "-"): name for name, gpu in gpus().items()}
    if product is None:
        raise RefusedError(
            f"{pod.title} does not say which GPU ({_PRODUCT}): give --device, one of "
            f"{', '.join(gpus())}, or cpu"
        )
    if product not in known:
        raise RefusedError(
            f"{pod.title}: {_PRODUCT} {product!r} is not in the catalogue: give --device, one of "
            f"{', '.join(gpus())}"
        )
    return known[product]
