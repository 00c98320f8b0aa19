"""Who occupies the devices: by the processes that the driver lists, and where it hides them by
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_llmdeploy.evidence import Evidence, Judgement
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.tenants import Tenant, Tenants
from pytest_llmdeploy.units import show
from pytest_llmdeploy.verdict import Readings

# What an idle device may have in use: the driver's own, never a model.
_IDLE_SHARE, _IDLE_MOST = 0.01, 1024**3
# What may stay in use after a stop: the driver's own is not the same to the byte.
_KEPT = 64 * 1024**2
# The part of a device that a server may take beyond its plan, which is no bound.
_UNPLANNED = 0.05


def idle(devices: Devices) -> Judgement:
    """No process is on a device, and no more of it is in use than the driver itself takes."""

    def fault(name: str, used: float) -> str:
        device = _named(devices, name)
        if device.tenants.items:
            return f"{_pids(device.tenants.items)} on it"
        return "" if is_idle(device) else f"{show(used, 'B')} in use, by no process seen"

    good = f"{len(devices)} of {len(devices)} idle"
    judgement = Readings(devices.each(_seen)).sound("no process, ≤ 1 % in use", fault, good)
    return _with_processes(judgement, devices)


def is_idle(device: Device) -> bool:
    """Whether no more is in use of a device than the driver itself takes."""
    total, used = device.total.value or 0.0, device.used.value or 0.0
    return used <= min(_IDLE_SHARE * total, _IDLE_MOST)


def returned(before: Devices, after: Devices, used: int) -> Judgement:
    """Of the first `used` devices of `before`, no more is in use afterwards."""
    left = after.beyond(before)
    own = before.first(used)
    new = replace(after, items=tuple(one for one in after if _same(before, one) is None))
    missing = after.problem or "error: not seen after the stop"

    def beyond(device: Device) -> Evidence:
        now = _same(left, device)
        return now.used if now else _unread(device.used, device.used.problem or missing)

    def unknown(device: Device) -> Evidence:
        return _unread(device.used, device.used.problem or "error: not seen before the launch")

    def fault(name: str, used: float) -> str:
        now = _same(left, _named(own, name))
        by = f" by {_pids(now.tenants.items)}" if now and now.tenants.items else ""
        return f"{show(used, 'B')} more{by}" if used > _KEPT else ""

    entries = Readings({**own.each(beyond), **(new.each(unknown) if new else {})})
    good = f"{len(own)} of {len(own)} as before"
    judgement = entries.sound("as before, + 64 MiB", fault, good)
    return _with_processes(judgement, after)


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """The devices of a server that serves, and the pids that are its own. `before` are the devices
    before its launch (None: it ran already), `planned` the bytes that it is to take of each.

    A device is UNATTRIBUTABLE when its pids are hidden: one that is listed is none of this
    machine's, or memory is in use and none is listed.
    """

    devices: Devices
    ours: frozenset[int]
    before: Devices | None
    planned: float | None

    def only_ours(self) -> Judgement:
        """Every device has a process of ours and no other; an UNATTRIBUTABLE one was idle before
        the launch, and no more of it is in use than is planned.
        """
        hidden = any(map(_is_hidden, self.devices))
        good = "UNATTRIBUTABLE, memory as planned" if hidden else "ours alone on each"
        entries = Readings(self.devices.each(self._processes))
        judgement = entries.sound("only our processes", self._fault, good)
        return _with_processes(judgement, self.devices)

    def _processes(self, device: Device) -> Evidence:
        """How many processes a device lists, or why nothing can be said of them."""
        listed = float(len(device.tenants.items))
        problem = device.tenants.problem
        if not problem and not self.ours:
            problem = "unsupported: the server's processes can't be seen from here"
        if not problem and not _are_seen(device.tenants):
            problem = self._unjudged(device)
        seen = None if problem else listed
        return replace(device.used, value=seen, unit="processes", problem=problem)

    def _unjudged(self, device: Device) -> str:
        """Why memory does not tell who is on a device either."""
        before = self._before(device)
        if unread := device.used.problem or device.total.problem:
            return unread
        if _is_hidden(device) and (before is None or before.used.value is None):
            return "unsupported: UNATTRIBUTABLE, and not read before the launch"
        if _is_hidden(device) and self.planned is None:
            return "unsupported: UNATTRIBUTABLE, and its memory is not planned"
        return ""

    def _fault(self, name: str, _listed: float) -> str:
        device = _named(self.devices, name)
        if _is_hidden(device):
            return self._excess(device, device.used.value or 0.0)
        foreign = [tenant for tenant in device.tenants.items if tenant.pid not in self.ours]
        if foreign:
            return f"{_pids(foreign)} not ours"
        return "" if device.tenants.items else "no process of ours"

    def _excess(self, device: Device, used: float) -> str:
        """What speaks against an UNATTRIBUTABLE device being ours alone."""
        before, planned = self._before(device), self.planned or 0.0
        earlier = (before and before.used.value) or 0.0
        if before and not is_idle(before):
            return f"UNATTRIBUTABLE, {show(earlier, 'B')} in use before the launch"
        if used > earlier + planned + _UNPLANNED * (device.total.value or 0.0):
            return f"UNATTRIBUTABLE, {show(used, 'B')} in use, {show(planned, 'B')} planned"
        return ""

    def _before(self, device: Device) -> Device | None:
        return _same(self.before, device) if self.before else None


def _seen(device: Device) -> Evidence:
    """What is in use of a device, when its processes can be seen as well."""
    problem = device.used.problem or device.total.problem or device.tenants.problem
    return _unread(device.used, problem) if problem else device.used


def _unread(evidence: Evidence, problem: str) -> Evidence:
    return replace(evidence, value=None, problem=problem)


def _are_seen(tenants: Tenants) -> bool:
    return bool(tenants.items) and all(tenant.is_here for tenant in tenants.items)


def _is_hidden(device: Device) -> bool:
    return not _are_seen(device.tenants) and (bool(device.tenants.items) or not is_idle(device))


def _named(devices: Devices, name: str) -> Device:
    return next(device for device in devices if device.name == name)


def _same(devices: Devices, wanted: Device) -> Device | None:
    same = (device for device in devices if device.identity == wanted.identity != "")
    return next(same, None)


def _pids(tenants: Sequence[Tenant]) -> str:
    first, *others = tenants
    return f"pid {first.pid}" + (f" and {len(others)} more" if others else "")


def _with_processes(judgement: Judgement, devices: Devices) -> Judgement:
    """With the processes of every device among the evidence."""
    processes: dict[str, Any] = {
        device.name: device.tenants.problem
        or [{"pid": tenant.pid, "used_bytes": tenant.used} for tenant in device.tenants.items]
        for device in devices
    }
    return replace(judgement, evidence={**judgement.evidence, "processes": processes})
