"""Repairs as YAML to be merged into a spec, the keys that stay left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pytest_llmdeploy.cli.document import yaml_text
from pytest_llmdeploy.plan.repair import Change, Repair, Repairs
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import Duration, Rate


def repair_text(spec: Spec, found: Repairs) -> str:
    """Each repair as one YAML document; what nothing can mend, as comments."""
    if not found.needed:
        return "# Every plan check passes: nothing to repair.\n"
    parts = list(_patches(spec, found.repairs)) or ["# No change that was tried mends this.\n"]
    text = "---\n".join(parts)
    if spec.extends and found.repairs:
        # What a base says, the file on top may say anew.
        text = f"# To be merged into {spec.source.path}, not into what it extends.\n{text}"
    for impossible in found.impossible:
        text += (
            f"# {impossible.requirement}: wanted {impossible.wanted}, "
            f"the closest is {impossible.closest}\n"
        )
    return text


def _patches(spec: Spec, repairs: tuple[Repair, ...]) -> Iterator[str]:
    for number, repair in enumerate(repairs, start=1):
        head = f"# {number} of {len(repairs)}: {repair}\n" if len(repairs) > 1 else f"# {repair}\n"
        yield head + yaml_text(patch(spec, repair.changes))


def patch(spec: Spec, changes: Iterable[Change]) -> dict[str, Any]:
    """The changed keys as they are nested in a spec; a workload is named, not counted."""
    result: dict[str, Any] = {}
    for change in changes:
        *path, last = change.key.split(".")
        node = result
        for part in path:
            node = _below(spec, node, part)
        node[last] = plain(change.value)
    return result


def _below(spec: Spec, node: dict[str, Any], part: str) -> dict[str, Any]:
    key, _, index = part.partition("[")
    if not index:
        below: dict[str, Any] = node.setdefault(key, {})
        return below
    name = spec.workloads[int(index[:-1])].name
    entries: list[dict[str, Any]] = node.setdefault(key, [])
    for entry in entries:
        if entry["name"] == name:
            return entry
    entries.append({"name": name})
    return entries[-1]


def plain(value: Any) -> Any:
    """A value of a spec as its file says it."""
    if isinstance(value, Duration):
        return f"{float(value):.15g}ms"
    if isinstance(value, Rate):
        return f"{float(value):.15g}/s"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Parallel):
        # Whole: what the spec said of the old strategy must not stay.
        return value.model_dump(mode="json")
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
