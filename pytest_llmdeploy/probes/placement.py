"""Where the devices of a tensor-parallel group are: on one NUMA node, or on several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from pytest_llmdeploy.evidence import Evidence, Judgement
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.verdict import Readings


def numa_placement(devices: Devices, used: int, size: int) -> Judgement:
    """The groups, `size` each of the first `used` devices, span together no more NUMA nodes than if
    devices were taken node by node, the fullest first.
    """
    nodes = devices.each(_node)
    groups = _groups(list(nodes), used, size)
    entries = Readings({_name(group): _span([nodes[n] for n in group]) for group in groups})
    filled = Counter(node.value for node in nodes.values())
    sorted_names = sorted(
        nodes, key=lambda name: (-filled[nodes[name].value], nodes[name].value or 0)
    )
    best = [_span([nodes[n] for n in group]) for group in _groups(sorted_names, used, size)]
    is_fewest = _total(entries.entries.values()) <= _total(best)

    def fault(_name: str, span: float) -> str:
        return f"on {span:g} NUMA nodes" if span > 1 and not is_fewest else ""

    judgement = entries.sound("on the fewest NUMA nodes", fault, "as few as can be")
    by_device = {name: asdict(node) for name, node in nodes.items()}
    return replace(judgement, evidence={**judgement.evidence, "nodes": by_device})


def _node(device: Device) -> Evidence:
    read = device.read(Field.NUMA_NODE)
    if read.value is not None and read.value < 0:
        return replace(read, value=None, problem="unsupported: the firmware does not say")
    return read


def _groups(names: Sequence[str], used: int, size: int) -> list[Sequence[str]]:
    names = names[:used]
    return [names[start : start + size] for start in range(0, len(names), size)]


def _name(group: Sequence[str]) -> str:
    return f"{group[0]} – {group[-1]}" if len(group) > 1 else group[0]


def _span(nodes: Sequence[Evidence]) -> Evidence:
    """On how many nodes they are."""
    unread = next((node for node in nodes if node.value is None), None)
    return unread or replace(
        nodes[0], value=float(len({node.value for node in nodes})), unit="nodes"
    )


def _total(spans: Iterable[Evidence]) -> float:
    return sum(span.value or 0.0 for span in spans)
