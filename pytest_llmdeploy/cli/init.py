"""`llmdeploy init`: from the command that somebody runs to a spec that can be tested."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.document import yaml_text
from pytest_llmdeploy.serving.command_line import CommandLineError, spec_from_command
from pytest_llmdeploy.spec import Spec, SpecError, load_spec

# Tokens of a request to begin with, where the server takes that many.
_INPUT, _OUTPUT = 512, 128


def run(arguments: argparse.Namespace) -> int:
    output: Path | None = arguments.output
    line = sys.stdin.read() if arguments.from_command == "-" else arguments.from_command
    try:
        found = spec_from_command(
            line,
            arguments.device,
            devices_per_node=arguments.devices_per_node,
            nodes=arguments.nodes,
        )
    except CommandLineError as error:
        raise RefusedError(str(error)) from None
    text = spec_text(_placed(found.data, output), output.stem if output else None)
    for note in found.notes:
        sys.stderr.write(f"note: {note}\n")
    if output is None:
        sys.stdout.write(text)
    else:
        _write(output, text, force=arguments.force)
        sys.stdout.write(
            f"wrote {output}: look at what is marked `adjust`, then run\n"
            f"  llmdeploy plan {output}\n"
            f"  pytest --deploy-spec {output}\n"
        )
    return 0


def spec_text(data: Mapping[str, Any], name: str | None = None) -> str:
    """The spec file of `data`, with a workload and requirements to begin with.

    Raises:
        RefusedError: when `data` is not a valid spec; the text says why, key by key.
    """
    spec = _loaded(yaml_text(data))
    sections = {key: value for key, value in data.items() if key != "version"}
    head = yaml_text({"version": 1, "name": name or _name(spec)})
    parts = [f"# What is deployed: as the server's command line says.\n{head}"]
    parts += [yaml_text({key: value}) for key, value in sections.items()]
    parts += ["\n".join(_workloads(spec)) + "\n", "\n".join(_require(spec)) + "\n"]
    text = "\n".join(parts)
    _loaded(text)
    return text


def _loaded(text: str) -> Spec:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return load_spec(path)
        except SpecError as error:
            faults = (f"{fault.key}: {fault.message}" for fault in error.problems)
            raise RefusedError("; ".join(faults)) from None


def _placed(data: Mapping[str, Any], output: Path | None) -> Mapping[str, Any]:
    """A model that is a folder here is meant from the spec's place, not from ours."""
    model = data["model"]
    folder = Path(model["id"])
    if output is None or folder.is_absolute() or not (folder / "config.json").is_file():
        return data
    seen = os.path.relpath(folder.resolve(), output.parent.resolve())
    return {**data, "model": {**model, "id": Path(seen).as_posix()}}


def _name(spec: Spec) -> str:
    words = f"{Path(spec.model.id).name}-{spec.hardware.devices}x{spec.hardware.device.name}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def _workloads(spec: Spec) -> Iterator[str]:
    """A steady workload; the limits are only proposed, since nobody said any."""
    most = spec.serve.max_model_len or _INPUT + _OUTPUT
    fits = most >= _INPUT + _OUTPUT
    given = _INPUT if fits else max(1, most // 2)
    wanted = _OUTPUT if fits else max(1, most // 8)
    yield "# What it must achieve. The command says nothing of it: adjust these, and take the `# `"
    yield "# away from what you require."
    yield "workloads:"
    yield "  - name: steady"
    yield from _columns(
        (f"    input_tokens: {given}", "adjust: a number, or {uniform: [low, high]}"),
        (f"    output_tokens: {wanted}", "adjust"),
        ("    rate: 1/s", "adjust: the requests that come; or concurrency: 16"),
        ("    max_duration: 10min", "adjust: a p99 takes about 400 requests"),
        ("    require:", ""),
        ("      errors: 0%", "adjust"),
        ("      # ttft: {p50: 500ms, p99: 2s}", "adjust: until the first token"),
        ("      # tpot: {p50: 50ms, p99: 100ms}", "adjust: for each further token"),
        ("      # keeps_up: true", ""),
    )


def _require(spec: Spec) -> Iterator[str]:
    parallel, device = spec.parallel, spec.hardware.device
    yield "require:"
    rows = [
        (f"  devices: {parallel.devices}", f"{parallel}, as in the command"),
        ("  # memory: {max_utilization: 95%}", "adjust: of every device"),
        ("  # kv_cache: {concurrent_sequences: 16}", "adjust: each of max_model_len tokens"),
    ]
    if parallel.devices > 1:
        rows.append(("  # balance: {memory: 5%}", "adjust: between the devices of a stage"))
    if parallel.tensor > 1 and device.gpu and device.gpu.link == "nvlink":
        rows.append(("  # interconnect: nvlink", "between the devices of a TP group"))
    yield from _columns(*rows)


def _columns(*rows: tuple[str, str]) -> Iterator[str]:
    """Lines with their comments one below the other."""
    width = max(len(line) for line, comment in rows if comment)
    for line, comment in rows:
        yield f"{line:{width}}  # {comment}" if comment else line


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RefusedError(f"{path} exists: give --force to overwrite it") from None
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error.strerror}") from None
