"""Which devices CUDA shows to a server: CUDA_VISIBLE_DEVICES, read as CUDA reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmdeploy.spec import Spec

_NAME = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Place:
    """Where NVML has a device: the index and UUID of the GPU and, of a MIG slice, its own.
    `problem` says why no more is known of it.
    """

    gpu: int
    gpu_uuid: str = ""
    slice: int | None = None
    slice_uuid: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        return f"GPU {self.gpu}" if self.slice is None else f"GPU {self.gpu} MIG {self.slice}"

    @property
    def uuid(self) -> str:
        return self.slice_uuid or self.gpu_uuid


class AmbiguousDevicesError(Exception):
    """CUDA_VISIBLE_DEVICES says nothing that CUDA takes; the text says why."""


def visible_devices(spec: Spec) -> str | None:
    """CUDA_VISIBLE_DEVICES as a server of `spec` gets it, from its own environment or else from
    this one; None when it is not set.
    """
    given = spec.serve.env.get(_NAME)
    if given is None:
        return os.environ.get(_NAME)
    return given.text if given.from_env is None else os.environ.get(given.from_env)


def chosen(visible: str | None, places: Sequence[Place]) -> list[Place]:
    """The places that `visible` names, in its order: by index, or by a UUID or how it begins. A GPU
    that is cut into slices stands for these. An entry that names nothing ends the list.

    Raises:
        AmbiguousDevicesError: when one is named twice: CUDA then shows none at all.
    """
    if visible is None:
        return list(places)
    found: list[Place] = []
    for entry in visible.split(","):
        named = list(_named(entry.strip(), places))
        if not named:
            break
        if again := next((place for place in named if place in found), None):
            msg = f"{_NAME}={visible} names {again.name} twice: CUDA then shows no device at all"
            raise AmbiguousDevicesError(msg)
        found += named
    return found


def _named(entry: str, places: Sequence[Place]) -> Iterator[Place]:
    if entry.isdecimal():
        yield from (place for place in places if place.gpu == int(entry))
    elif entry.startswith("MIG-"):
        yield from _only(entry, {place.slice_uuid: [place] for place in places})
    elif entry.startswith("GPU-"):
        of_gpu = {p.gpu_uuid: [q for q in places if q.gpu_uuid == p.gpu_uuid] for p in places}
        yield from _only(entry, of_gpu)


def _only(beginning: str, by_uuid: dict[str, list[Place]]) -> list[Place]:
    """What the one UUID that begins so stands for."""
    fitting = [places for uuid, places in by_uuid.items() if uuid.startswith(beginning)]
    return fitting[0] if len(fitting) == 1 else []
