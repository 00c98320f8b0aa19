"""What devices had in use in a run, and how much more they have in a later one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_llmdeploy.baseline.document import Earlier
from pytest_llmdeploy.evidence import Evidence

AT_REST, UNDER_LOAD = "at rest", "under load"


def used(run: Earlier) -> Mapping[tuple[str, str], float]:
    """Bytes by device and when; of the time under load the most."""
    found: dict[tuple[str, str], float] = {}
    if run.devices is None:
        return found
    for device in run.devices.at_rest or ():
        if device.used_bytes is not None:
            found[device.name, AT_REST] = device.used_bytes
    series = run.devices.under_load.series if run.devices.under_load else {}
    for name, columns in series.items():
        seen = [value for value in columns.get("used_bytes", ()) if value is not None]
        if seen:
            found[name, UNDER_LOAD] = max(seen)
    return found


def growth(now: Mapping[str, Evidence], was: Earlier, when: str) -> Mapping[str, Evidence]:
    """By which fraction every device has more in use (bytes, by device) than it had then."""
    before = used(was)
    return {name: _growth(read, before.get((name, when))) for name, read in now.items()}


def _growth(now: Evidence, was: float | None) -> Evidence:
    if now.value is None:
        return now
    if not was:
        problem = "error: the baseline has not read it"
        return replace(now, value=None, unit="fraction", problem=problem)
    return replace(now, value=now.value / was - 1, unit="fraction")
