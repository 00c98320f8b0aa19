"""Comparisons of what was read or calculated exactly: one value, or one per device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.units import show

_WHOLE = "value"


@dataclass(frozen=True)
class Readings:
    """Evidence by name (one entry per device, rank or engine); judged by its worst entry.

    Nothing read, or an entry that could not be read, is an ERROR: never a pass.
    """

    entries: Mapping[str, Evidence]

    @classmethod
    def of(cls, value: float | Evidence | Mapping[str, float | Evidence] | Readings) -> Self:
        """Readings from a number, a piece of evidence, or a mapping of either."""
        if isinstance(value, Readings):
            return cls(value.entries)
        entries = value if isinstance(value, Mapping) else {_WHOLE: value}
        return cls({str(name): _evidence(item) for name, item in entries.items()})

    def at_most(self, limit: float, about: str = "") -> Judgement:
        return self._compare(limit, f"≤ {self._limit(limit)}", about, max, _below)

    def at_least(self, limit: float, about: str = "") -> Judgement:
        return self._compare(limit, f"≥ {self._limit(limit)}", about, min, _above)

    def equals(self, expected: float, about: str = "") -> Judgement:
        """Every entry is exactly `expected`; the one furthest from it is named."""

        def furthest(names: Iterable[str], key: Callable[[str], float]) -> str:
            return max(names, key=lambda name: abs(key(name) - expected))

        def same(value: float, limit: float) -> tuple[bool, float | None]:
            return value == limit, None

        return self._compare(expected, self._limit(expected), about, furthest, same)

    def within(self, tolerance: float, about: str = "") -> Judgement:
        """Every entry is within the fraction `tolerance` of the mean, both ways.

        The measure is D = max |x − mean| / mean: an idle device shows in it as much as a busy one.
        """
        requirement = _join(f"within {show(tolerance, 'fraction')}", about)
        if unread := self._unread(requirement, tolerance):
            return unread
        mean = math.fsum(self._values.values()) / len(self._values)
        deviations = {name: _deviation(value, mean) for name, value in self._values.items()}
        worst = max(deviations, key=deviations.__getitem__)
        good, margin = _below(deviations[worst], tolerance)
        return judged(
            good,
            requirement,
            _join(show(deviations[worst], "fraction"), _named(worst)),
            measured=deviations[worst],
            limit=tolerance,
            unit="fraction",
            margin=margin,
            evidence={**self.as_evidence(), "worst": worst, "mean": mean},
        )

    def hold(self, about: str = "") -> Judgement:
        """Every entry is 1; `about` is what they are ("pairs")."""
        # What could not be read may be one entry that stands for all.
        if unread := self._unread(_join("all", about), None):
            return unread
        requirement = _join(f"all {len(self.entries)}", about)
        missing = [name for name, value in self._values.items() if value != 1]
        held = len(self._values) - len(missing)
        return judged(
            not missing,
            requirement,
            f"{held} of {len(self._values)}" + (f", not {missing[0]}" if missing else ""),
            measured=held,
            bound=held,
            limit=len(self._values),
            evidence={**self.as_evidence(), "missing": missing},
        )

    def among(self, good: Sequence[int], words: Mapping[int, str], about: str = "") -> Judgement:
        """Every entry is one of the codes `good`; `words` say what codes mean."""

        def word(code: float) -> str:
            return words.get(int(code), f"code {code:g}")

        def fault(_name: str, code: float) -> str:
            return "" if code in good else word(code)

        requirement = _join(" or ".join(map(word, good)), about)
        return self.sound(requirement, fault, _join(word(good[0]), about))

    def reach(self, most: Readings, about: str = "") -> Judgement:
        """Every entry is as much as the entry of that name in `most`, the most that it can be."""
        limits = most._values

        def fault(name: str, value: float) -> str:
            return f"{value:g} of {show(limits[name], self.unit)}" if value < limits[name] else ""

        shown = [show(value, self.unit) for value in sorted(set(limits.values()))]
        requirement = _join(" or ".join(shown), about)
        if unread := most._unread(requirement, None):
            return unread
        judgement = self.sound(requirement, fault, requirement, min)
        readings = most.as_evidence()["readings"]
        return replace(judgement, evidence={**judgement.evidence, "most": readings})

    def sound(
        self,
        requirement: str,
        fault: Callable[[str, float], str],
        good: str,
        worst_of: Callable[..., str] = max,
    ) -> Judgement:
        """No entry has a fault. `fault` says what is wrong with a name and its value, or nothing;
        `good` is said when nothing is. The faulty entry of the largest value (`worst_of`) is named.
        """
        if unread := self._unread(requirement, None):
            return unread
        values = self._values
        faults = {name: text for name, value in values.items() if (text := fault(name, value))}
        worst = worst_of(faults or values, key=values.__getitem__)
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return judged(
            not faults,
            requirement,
            f"{worst}: {faults[worst]}{more}" if faults else good,
            measured=values[worst],
            unit=self.unit,
            evidence={**self.as_evidence(), "worst": worst, "faults": faults},
        )

    @property
    def unit(self) -> str:
        return next((entry.unit for entry in self.entries.values()), "")

    def _limit(self, limit: float) -> str:
        """The limit as a person reads it: in the unit of what was read, else in its own."""
        return show(limit, self.unit or getattr(limit, "unit", ""))

    def as_evidence(self) -> dict[str, Any]:
        """The entries as they go into the report."""
        sources = sorted({entry.source for entry in self.entries.values()})
        return {
            "source": "; ".join(sources),
            "readings": {name: asdict(entry) for name, entry in self.entries.items()},
        }

    @cached_property
    def _values(self) -> dict[str, float]:
        return {n: float(e.value) for n, e in self.entries.items() if e.value is not None}

    def _compare(
        self,
        limit: float,
        requirement: str,
        about: str,
        worst_of: Callable[..., str],
        judge: Callable[[float, float], tuple[bool, float | None]],
    ) -> Judgement:
        requirement = _join(requirement, about)
        if unread := self._unread(requirement, limit):
            return unread
        values = self._values
        worst = worst_of(values, key=values.__getitem__)
        good, margin = judge(values[worst], limit)
        return judged(
            good,
            requirement,
            _join(show(values[worst], self.unit), _named(worst)),
            measured=values[worst],
            limit=limit,
            unit=self.unit,
            margin=margin,
            evidence={**self.as_evidence(), "worst": worst},
        )

    def _unread(self, requirement: str, limit: float | None) -> Judgement | None:
        missing = {
            name: e.problem or "not a finite number"
            for name, e in self.entries.items()
            if e.value is None or not math.isfinite(e.value)
        }
        if self.entries and not missing:
            return None
        alike: dict[str, list[str]] = {}
        for name, text in missing.items():
            alike.setdefault(text, []).append(name)
        texts = [_join(text, _named(_several(names))) for text, names in alike.items()]
        return Judgement(
            status=Status.ERROR,
            requirement=requirement,
            result="; ".join(texts) or "nothing could be read",
            limit=limit,
            unit=self.unit,
            evidence=self.as_evidence(),
        )


def _named(name: str) -> str:
    return f"({name})" if name != _WHOLE else ""


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _evidence(item: float | Evidence) -> Evidence:
    if isinstance(item, Evidence):
        return item
    unit = getattr(item, "unit", "")
    return Evidence(float(item), unit, "given by the check")


def _deviation(value: float, mean: float) -> float:
    if value == mean:
        return 0.0
    return abs(value - mean) / abs(mean) if mean else math.inf


def _below(value: float, limit: float) -> tuple[bool, float | None]:
    return value <= limit, (limit - value) / limit if limit else None


def _above(value: float, limit: float) -> tuple[bool, float | None]:
    return value >= limit, (value - limit) / limit if limit else None


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
