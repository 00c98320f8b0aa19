"""The GPUs of this machine, or the MIG slices that they are cut into, as NVML sees them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pynvml

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.nvml import FAULTS, SOURCE, problem, session
from pytest_llmdeploy.probes.patience import answers, timed_out
from pytest_llmdeploy.probes.readings import read_fields, read_memory, read_tenants
from pytest_llmdeploy.probes.tenants import Tenants
from pytest_llmdeploy.probes.visible import AmbiguousDevicesError, Place, chosen


def read_gpus(visible: str | None = None, fields: Collection[Field] | None = None) -> Devices:
    """The devices that CUDA shows under `visible`, its CUDA_VISIBLE_DEVICES. With `fields`, no more
    is read of them than their memory and these; else all fields, and who computes there.

    A GPU that is lost, or that does not answer in time, is among them, unread.
    """
    try:
        places = chosen(visible, _places())
    except FAULTS as fault:
        return Devices((), SOURCE, problem(fault))
    except (AmbiguousDevicesError, TimeoutError) as error:
        return Devices((), SOURCE, f"error: {error}")
    said = answers({p.name: _said(p, fields) for p in places if not p.problem})
    return Devices(
        tuple(_device(place, dict(said.get(place.name, ())), fields) for place in places), SOURCE
    )


def _places() -> list[Place]:
    (counts,) = answers({SOURCE: _count()}).values()
    if not counts:
        raise TimeoutError(timed_out(SOURCE).removeprefix("error: "))
    found = answers({f"GPU {index}": _places_of(index) for index in range(counts[0])})
    unknown = timed_out(SOURCE)
    return [
        place
        for index, heard in enumerate(found.values())
        for place in (heard[0] if heard else [Place(index, problem=unknown)])
    ]


def _count() -> Iterator[int]:
    with session():
        yield pynvml.nvmlDeviceGetCount()


def _places_of(index: int) -> Iterator[list[Place]]:
    """The GPU itself, or its slices when it has any."""
    try:
        with session():
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            slices = [Place(index, uuid, *part) for part in _slices(handle)]
            yield slices or [Place(index, uuid)]
    except FAULTS as fault:
        yield [Place(index, problem=problem(fault))]


def _slices(gpu: Any) -> Iterator[tuple[int, str]]:
    """The MIG slices of a GPU: index and UUID."""
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(gpu)
    except pynvml.NVMLError:
        # Whoever asks for the mode itself hears of it.
        return
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if mode else 0):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except pynvml.NVMLError_NotFound:
            continue
        yield index, pynvml.nvmlDeviceGetUUID(handle)


def _said(place: Place, fields: Collection[Field] | None) -> Iterator[tuple[str, Any]]:
    """What NVML says of a device, one by one: whatever hangs, what came before is known."""
    try:
        with session():
            handles = _handles(place)
            own = handles[SOURCE]
            yield "kind", pynvml.nvmlDeviceGetName(own)
            yield from read_memory(own).items()
            if fields is None:
                yield "tenants", read_tenants(own)
            yield from read_fields(handles, tuple(Field) if fields is None else fields)
    except FAULTS as fault:
        yield "problem", problem(fault)


def _handles(place: Place) -> dict[str, Any]:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(place.gpu)
    if place.slice is None:
        return {SOURCE: gpu}
    part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place.slice)
    return {SOURCE: part, f"{SOURCE} of its GPU": gpu}


def _device(place: Place, said: Mapping[str, Any], fields: Collection[Field] | None) -> Device:
    unsaid = place.problem or said.get("problem") or timed_out(SOURCE)

    def read(name: str, unit: str) -> Evidence:
        unread = Evidence(None, unit, SOURCE, time.time(), unsaid)
        found: Evidence = said.get(name, unread)
        return found

    return Device(
        place.name,
        place.uuid,
        said.get("kind", ""),
        total=read("total", "B"),
        used=read("used", "B"),
        reserved=read("reserved", "B"),
        fields={name: read(name, name.unit) for name in (Field if fields is None else fields)},
        **({"tenants": said.get("tenants", Tenants(problem=unsaid))} if fields is None else {}),
    )
