"""What held the clocks back while the traffic ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_llmdeploy.evidence import Evidence, Judgement
from pytest_llmdeploy.facts import nvml_words
from pytest_llmdeploy.probes.devices import Device
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.verdict import Readings

# HW slowdown, SW thermal, HW thermal, power brake. The power cap (4) is normal under load.
_HELD_BACK = 0x8 | 0x20 | 0x40 | 0x80
_SHOWN = (Field.TEMPERATURE, Field.POWER, Field.SM_CLOCK)


def throttling(recording: Recording) -> Judgement:
    """In no look at a device, heat or power held its clocks back."""
    series = recording.series(_reasons)

    def counted(name: str, evidence: Evidence) -> Evidence:
        if evidence.value is None:
            return evidence
        held = sum(bool(_mask(look) & _HELD_BACK) for look in series[name])
        return replace(evidence, value=float(held), unit="looks")

    def fault(name: str, held: float) -> str:
        reasons = ", ".join(_words(series[name], _HELD_BACK))
        return f"{reasons} in {held:g} of {len(series[name])} looks" if held else ""

    seen = recording.most(_reasons)
    entries = Readings({name: counted(name, evidence) for name, evidence in seen.items()})
    good = f"{len(seen)} of {len(seen)}, none held back"
    judgement = entries.sound("no GPU held back", fault, good)
    return replace(judgement, evidence={**judgement.evidence, **_surroundings(recording)})


def _surroundings(recording: Recording) -> dict[str, Any]:
    """Everything that was seen to act on the clocks, and least, median and most of what goes with
    it.
    """
    reasons = {name: _words(looks, ~0) for name, looks in recording.series(_reasons).items()}
    return {"reasons": reasons, **{field.value: _range(recording, field) for field in _SHOWN}}


def _range(recording: Recording, field: Field) -> dict[str, list[float | None]]:
    def read(device: Device) -> Evidence:
        return device.read(field)

    low, middle, high = recording.least(read), recording.median(read), recording.most(read)
    return {name: [low[name].value, middle[name].value, high[name].value] for name in low}


def _reasons(device: Device) -> Evidence:
    return device.read(Field.CLOCKS_EVENT_REASONS)


def _words(looks: Sequence[Evidence], mask: int) -> list[str]:
    """Every reason of these looks, in words."""
    seen = 0
    for look in looks:
        seen |= _mask(look) & mask
    return [word for bit, word in nvml_words("clocks_event_reasons").items() if seen & bit]


def _mask(look: Evidence) -> int:
    return int(look.value or 0)
