"""Whether GPUs are in order, by what they say of themselves."""

from __future__ import annotations

from dataclasses import replace

from pytest_llmdeploy.evidence import Evidence, Judgement
from pytest_llmdeploy.facts import nvml_words
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.units import show
from pytest_llmdeploy.verdict import Readings

_FABRIC = (Field.FABRIC_STATE, Field.FABRIC_STATUS)
_NO_FABRIC, _REGISTERED = 0, 3


def uncorrected(devices: Devices) -> Judgement:
    """No GPU has had a memory error that could not be corrected."""

    def fault(_name: str, errors: float) -> str:
        return f"{errors:g} uncorrected" if errors else ""

    errors = Readings(devices.read(Field.ECC_UNCORRECTED))
    return errors.sound("no uncorrected error", fault, "0 errors on each")


def remapped(devices: Devices) -> Judgement:
    """No row of a GPU's memory waits to be remapped (1), or could not be (2)."""

    def rows(device: Device) -> Evidence:
        pending, failed = device.read(Field.ROWS_PENDING), device.read(Field.ROWS_FAILED)
        if pending.value is None or failed.value is None:
            return failed if failed.value is None else pending
        return replace(pending, value=2.0 if failed.value else pending.value)

    words = {0: "nothing pending or failed", 1: "waits for a reset", 2: "a row has failed"}
    return Readings(devices.each(rows)).among([0], words)


def registered(devices: Devices) -> Judgement:
    """Every GPU is registered with its NVSwitch fabric, that went well, and it is whole.

    Many that are in order do not tell of the bandwidth: it is asked for where one does.
    """
    states = nvml_words("fabric_state")
    status, degraded = devices.read(Field.FABRIC_STATUS), devices.read(Field.FABRIC_DEGRADED)

    def state(device: Device) -> Evidence:
        reads = [device.read(field) for field in _FABRIC]
        if reads[0].value == _NO_FABRIC:
            return replace(reads[0], value=None, problem="unsupported: there is no NVSwitch fabric")
        return next((read for read in reads if read.value is None), reads[0])

    def fault(name: str, state: float) -> str:
        if state != _REGISTERED:
            return states.get(int(state), f"state {state:g}")
        if status[name].value:
            return f"registration failed, status {status[name].value:g}"
        return "less bandwidth than it should have" if degraded[name].value else ""

    good = f"{len(devices)} of {len(devices)} registered"
    told = any(read.value is not None for read in degraded.values())
    wanted = "registered, at full bandwidth" if told else "registered"
    return Readings(devices.each(state)).sound(wanted, fault, good)


def without_xids(xids: Xids, devices: Devices) -> Judgement:
    """No XID of these devices was reported while somebody watched. It says nothing of before."""

    def count(device: Device) -> Evidence:
        problem = xids.problem or (
            "" if device.name in xids.devices else "unsupported: nobody watched it"
        )
        seen = None if problem else float(len(xids.seen.get(device.name, ())))
        return Evidence(seen, "XIDs", xids.source, problem=problem)

    def fault(name: str, _count: float) -> str:
        codes = dict.fromkeys(xids.seen.get(name, ()))
        words = nvml_words("xid")
        return ", ".join(f"XID {code} ({words.get(code, 'see the list')})" for code in codes)

    watched = show(xids.seconds * 1000, "ms")
    judgement = Readings(devices.each(count)).sound(
        "none reported", fault, f"not observed in {watched}"
    )
    seen = {name: list(codes) for name, codes in xids.seen.items()}
    evidence = {**judgement.evidence, "xids": seen, "watched_seconds": xids.seconds}
    return replace(judgement, evidence=evidence)
