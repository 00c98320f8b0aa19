"""`llmdeploy init`: from what somebody has to a spec that can be tested."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.document import loaded, yaml_text
from pytest_llmdeploy.cli.draft import Draft
from pytest_llmdeploy.serving.command_line import CommandLineError, spec_from_command
from pytest_llmdeploy.spec import Spec

# Tokens of a request to begin with, where the server takes that many.
_INPUT, _OUTPUT = 512, 128
_CPU_MEMORY = "4GiB"
_SECTIONS = ("model", "engine", "hardware", "parallel", "serve", "attach")


def run(arguments: argparse.Namespace) -> int:
    output: Path | None = arguments.output
    draft = _on_cpu(_draft(arguments))
    data = _placed(draft.data, output)
    text = spec_text(replace(draft, data=data), output.stem if output else None)
    for note in draft.notes:
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


def _draft(arguments: argparse.Namespace) -> Draft:
    """What the chosen way finds out; each is imported when it is."""
    given = {"devices_per_node": arguments.devices_per_node, "nodes": arguments.nodes}
    device: str | None = arguments.device
    if arguments.only and not arguments.from_manifest:
        raise RefusedError("--only: chooses a server of --from-manifest")
    if arguments.from_url:
        from pytest_llmdeploy.cli.running import draft_of_server  # noqa: PLC0415

        return draft_of_server(arguments.from_url, device, **given)
    if arguments.from_manifest:
        from pytest_llmdeploy.cli.manifest import draft_of_manifest  # noqa: PLC0415

        return draft_of_manifest(arguments.from_manifest, device, only=arguments.only, **given)
    if device is None:
        raise RefusedError("--device: on what does it run? A GPU of the catalogue, or cpu")
    if arguments.model:
        from pytest_llmdeploy.cli.choice import draft_of_choice  # noqa: PLC0415

        return draft_of_choice(arguments.model, device, **given)
    return _draft_of_command(arguments.from_command, device, **given)


def _draft_of_command(line: str, device: str, **given: int | None) -> Draft:
    line = sys.stdin.read() if line == "-" else line
    try:
        found = spec_from_command(line, device, **given)
    except CommandLineError as error:
        raise RefusedError(str(error)) from None
    return Draft(found.data, "as the server's command line says", found.notes)


def spec_text(draft: Draft, name: str | None = None) -> str:
    """The spec file of a draft, with a workload and requirements to begin with.

    Raises:
        RefusedError: when its data is not a valid spec; the text says why, key by key.
    """
    spec = loaded(yaml_text(draft.data))
    head = yaml_text({"version": 1, "name": name or _name(spec)})
    parts = [f"# What is deployed: {draft.about}.\n{head}"]
    parts += [_section(key, draft) for key in _SECTIONS if key in {*draft.data, *draft.proposals}]
    parts += ["\n".join(_workloads(spec)) + "\n", "\n".join(_require(spec)) + "\n"]
    text = "\n".join(parts)
    loaded(text)
    return text


def _section(key: str, draft: Draft) -> str:
    """A section with its remarks and proposals; one of proposals alone is a comment as a whole."""
    remarks = [f"# {remark}\n" for remark in draft.remarks.get(key, ())]
    proposals = draft.proposals.get(key, ())
    if key in draft.data:
        body = [yaml_text({key: draft.data[key]}), *(f"  # {line}\n" for line in proposals)]
    else:
        body = [f"# {key}:\n", *(f"#   {line}\n" for line in proposals)]
    return "".join([*remarks, *body])


def _on_cpu(draft: Draft) -> Draft:
    """On the CPU nothing says how much memory a device has: something to begin with."""
    hardware = draft.data["hardware"]
    if hardware.get("device") != "cpu":
        return draft
    device = {"name": "cpu", "memory": _CPU_MEMORY}
    remark = "a device is a worker process; adjust: memory is what each may take"
    return replace(
        draft,
        data={**draft.data, "hardware": {**hardware, "device": device}},
        remarks={**draft.remarks, "hardware": (*draft.remarks.get("hardware", ()), remark)},
    )


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
    yield "# What it must achieve, which is yours to say: adjust these, and take the `# ` away"
    yield "# from what you require."
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
        (f"  devices: {parallel.devices}", str(parallel)),
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
