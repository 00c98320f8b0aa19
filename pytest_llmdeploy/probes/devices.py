"""Devices and what was read of them: GPUs, or on the CPU the workers that stand in for them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.tenants import Tenants

_UNSEEN = "unsupported: {} can't be seen here"


@dataclass(frozen=True, slots=True)
class Device:
    """One device: bytes of memory in all, in use, and kept back by the driver.

    `name` is what the report calls it ("GPU 3", "rank 1"); `identity` is the UUID of a GPU or the
    pid of a worker; `kind` is the product name; `stage` is the pipeline stage where it is known;
    `fields` is what else was read of it, `tenants` who else holds memory of it, `pods` who it was
    given to ("namespace/pod"), where a cluster says so.
    """

    name: str
    identity: str
    kind: str
    total: Evidence
    used: Evidence
    reserved: Evidence
    stage: int = 0
    fields: Mapping[Field, Evidence] = field(default_factory=dict)
    tenants: Tenants = Tenants(problem="unsupported: processes are not seen here")
    pods: Sequence[str] = ()

    @property
    def utilization(self) -> Evidence:
        return _combined("fraction", operator.truediv, self.used, self.total)

    @property
    def headroom(self) -> Evidence:
        free = _combined("B", operator.sub, self.total, self.used)
        return _combined("B", operator.sub, free, self.reserved)

    def read(self, name: Field) -> Evidence:
        """One of its fields; what nobody could read here is unsupported."""
        unread = Evidence(None, name.unit, self.total.source, self.total.at, _UNSEEN.format(name))
        return self.fields.get(name, unread)


@dataclass(frozen=True)
class Devices(Sequence[Device]):
    """The devices of a deployment, at one moment; `problem` says why there are none to see, `at`
    (Unix seconds) when one of a series of looks was.
    """

    items: tuple[Device, ...]
    source: str
    problem: str = ""
    at: float = 0.0

    def each(self, read: Callable[[Device], Evidence]) -> Mapping[str, Evidence]:
        """What `read` takes of every device, by device."""
        if self.problem:
            return {"devices": Evidence(None, "", self.source, problem=self.problem)}
        return {
            device.name: replace(read(device), identity=device.identity) for device in self.items
        }

    @property
    def total(self) -> Mapping[str, Evidence]:
        """All bytes, by device."""
        return self.each(lambda device: device.total)

    @property
    def used(self) -> Mapping[str, Evidence]:
        """Bytes in use, by device."""
        return self.each(lambda device: device.used)

    @property
    def utilization(self) -> Mapping[str, Evidence]:
        """Used of total, by device."""
        return self.each(lambda device: device.utilization)

    @property
    def headroom(self) -> Mapping[str, Evidence]:
        """Bytes left (total − reserved − used), by device."""
        return self.each(lambda device: device.headroom)

    def read(self, name: Field) -> Mapping[str, Evidence]:
        """One field, by device."""
        return self.each(lambda device: device.read(name))

    def first(self, count: int) -> Devices:
        """The first so many: those that a deployment of so many ranks is given."""
        return replace(self, items=self.items[:count])

    def beyond(self, baseline: Devices) -> Devices:
        """These devices without the bytes that the same ones had in use before, by identity."""
        before = {device.identity: device.used for device in baseline if device.identity}
        own = tuple(
            replace(device, used=_combined("B", operator.sub, device.used, before[device.identity]))
            if device.identity in before
            else device
            for device in self.items
        )
        return replace(self, items=own)

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
                "fields": {
                    str(name): evidence.value
                    for name, evidence in device.fields.items()
                    if evidence.value is not None
                },
            }
            for device in self.items
        ]

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
