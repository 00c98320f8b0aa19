"""Whose processes hold memory of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """A process on a device: its pid as the driver says it, which in a container may be the host's,
    and its bytes of memory (None where the driver does not say). `is_here` says whether this
    machine has a process of that pid at all.
    """

    pid: int
    used: int | None
    is_here: bool = True


@dataclass(frozen=True, slots=True)
class Tenants:
    """The processes on a device; `problem` says why they can't be seen."""

    items: Sequence[Tenant] = ()
    problem: str = ""
