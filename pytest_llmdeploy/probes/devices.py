"""Devices and what was read of them: GPUs, or on the CPU the workers that stand in for them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pytest_llmdeploy.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Device:
    """One device: bytes of memory in all, in use, and kept back by the driver.

    `name` is what the report calls it ("GPU 3", "rank 1"); `identity` is the UUID of a GPU or the
    pid of a worker; `kind` is the product name; `stage` is the pipeline stage where it is known.
    """

    name: str
    identity: str
    kind: str
    total: Evidence
    used: Evidence
    reserved: Evidence
    stage: int = 0

    @property
    def utilization(self) -> Evidence:
        return _combined("fraction", operator.truediv, self.used, self.total)

    @property
    def headroom(self) -> Evidence:
        free = _combined("B", operator.sub, self.total, self.used)
        return _combined("B", operator.sub, free, self.reserved)


@dataclass(frozen=True)
class Devices(Sequence[Device]):
    """The devices of a deployment, at one moment; `problem` says why there are none to see."""

    items: tuple[Device, ...]
    source: str
    problem: str = ""

    @property
    def used(self) -> Mapping[str, Evidence]:
        """Bytes in use, by device."""
        return self._each(lambda device: device.used)

    @property
    def utilization(self) -> Mapping[str, Evidence]:
        """Used of total, by device."""
        return self._each(lambda device: device.utilization)

    @property
    def headroom(self) -> Mapping[str, Evidence]:
        """Bytes left (total − reserved − used), by device."""
        return self._each(lambda device: device.headroom)

    def by_stage(self) -> Mapping[int, Devices]:
        """The devices of each pipeline stage."""
        stages = sorted({device.stage for device in self.items})
        return {
            stage: Devices(tuple(d for d in self.items if d.stage == stage), self.source)
            for stage in stages
        }

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "name": device.name,
                "identity": device.identity,
                "kind": device.kind,
                "total_bytes": device.total.value,
                "used_bytes": device.used.value,
            }
            for device in self.items
        ]

    def _each(self, read: Callable[[Device], Evidence]) -> Mapping[str, Evidence]:
        if self.problem:
            return {"devices": Evidence(None, "", self.source, problem=self.problem)}
        return {device.name: read(device) for device in self.items}

    @overload
    def __getitem__(self, index: int) -> Device: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Device, ...]: ...
    def __getitem__(self, index: int | slice) -> Device | tuple[Device, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Device]:
        return iter(self.items)


def _combined(
    unit: str, combine: Callable[[float, float], float], left: Evidence, right: Evidence
) -> Evidence:
    source = left.source if left.source == right.source else f"{left.source}; {right.source}"
    at = max(left.at, right.at)
    if left.value is None or right.value is None:
        return Evidence(None, unit, source, at, left.problem or right.problem)
    if combine is operator.truediv and not right.value:
        return Evidence(None, unit, source, at, "error: the total is 0")
    return Evidence(combine(left.value, right.value), unit, source, at)
