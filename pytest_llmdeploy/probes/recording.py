"""What devices showed over time, while the traffic ran."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import CHANGING, Field

Read = Callable[[Device], Evidence]

_OVER_TIME = CHANGING - {Field.PCIE_MAX_GENERATION}
_OF_BEFORE = "error: stale: what was seen was read before the traffic began"


@dataclass(frozen=True)
class Recording:
    """Looks at the devices, in order; `problem` says why there are none.

    `origin` (Unix seconds) is what times count from.
    """

    looks: Sequence[Devices] = ()
    origin: float = 0.0
    problem: str = "error: the devices were not looked at while the traffic ran"

    def most(self, read: Read) -> Mapping[str, Evidence]:
        """The largest value of every device; one that could not be read is not left out."""
        return self._each(read, max)

    def least(self, read: Read) -> Mapping[str, Evidence]:
        """The smallest value of every device."""
        return self._each(read, min)

    def median(self, read: Read) -> Mapping[str, Evidence]:
        """The median value of every device."""
        return self._each(read, statistics.median)

    def series(self, read: Read) -> Mapping[str, Sequence[Evidence]]:
        """Every look at every device. One that was not there at a look is unread in it."""
        names = dict.fromkeys(device.name for look in self.looks for device in look)
        found: dict[str, list[Evidence]] = {name: [] for name in names}
        for look in self.looks:
            seen = {device.name: replace(read(device), identity=device.identity) for device in look}
            gone = look.problem or "lost: it was not there at one look"
            unread = Evidence(None, "", look.source, look.at, gone)
            for name, evidences in found.items():
                evidences.append(seen.get(name, unread))
        return found

    def summary(self, read: Read) -> dict[str, dict[str, Any]]:
        """What all looks come to, by device, for a row's evidence; null where one was not read."""
        parts = {"min": self.least(read), "median": self.median(read), "max": self.most(read)}
        return {
            name: {part: values[name].value for part, values in parts.items()}
            for name in parts["min"]
        }

    def beyond(self, baseline: Devices) -> Recording:
        """The same without the bytes that were in use before."""
        return replace(self, looks=[look.beyond(baseline) for look in self.looks])

    def to_json(self) -> dict[str, Any] | None:
        """Every look: the times in seconds since `origin`, and what moves; null where it was not
        read. A field that nobody could read is left out.
        """
        if not self.looks:
            return None
        columns = {"used_bytes": self.series(lambda device: device.used)}
        for name in (name for name in Field if name in _OVER_TIME):
            columns[str(name)] = self.series(lambda device, name=name: device.read(name))  # type: ignore[misc]
        series: dict[str, dict[str, list[float | None]]] = {}
        for column, by_device in columns.items():
            for device, seen in by_device.items():
                values = [_written(evidence.value) for evidence in seen]
                if any(value is not None for value in values):
                    series.setdefault(device, {})[column] = values
        return {
            "origin": self.origin,
            "times": [round(look.at - self.origin, 3) for look in self.looks],
            "series": series,
        }

    def _each(
        self, read: Read, summary: Callable[[Sequence[float]], float]
    ) -> Mapping[str, Evidence]:
        found = self.series(read)
        if not found:
            seen = [look.problem or "error: no device was seen under load" for look in self.looks]
            problems = seen or [self.problem]
            return {"devices": Evidence(None, "", "the devices under load", problem=problems[-1])}
        return {name: _summary(seen, summary, self.origin) for name, seen in found.items()}


def _summary(
    seen: Sequence[Evidence], summary: Callable[[Sequence[float]], float], origin: float
) -> Evidence:
    unread = next((evidence for evidence in seen if evidence.value is None), None)
    if unread is not None:
        return unread
    last = seen[-1]
    # What somebody else has read for us may be of before.
    under_load = [evidence for evidence in seen if evidence.at >= origin]
    if not under_load:
        return replace(last, value=None, problem=_OF_BEFORE)
    value = float(
        summary([evidence.value for evidence in under_load if evidence.value is not None])
    )
    source = f"{last.source}, {len(under_load)} looks under load"
    return replace(last, value=value, source=source)


def _written(value: float | None) -> float | None:
    """A value as the report has it: short, for there are many."""
    if value is None:
        return None
    return int(value) if value == int(value) else round(value, 3)
