"""XIDs: the faults that the driver reports of a GPU, as it reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Xids:
    """What was reported while somebody watched: XIDs by the name of the device, in order. `seconds`
    is for how long; `problem` says why nobody could. XIDs of before are not among them.
    """

    seen: Mapping[str, Sequence[int]] = field(default_factory=dict)
    devices: Sequence[str] = ()
    seconds: float = 0.0
    source: str = "NVML events"
    problem: str = ""
