"""Which GPUs reach each other over NVLink."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import pynvml

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device
from pytest_llmdeploy.probes.nvml import FAULTS, SOURCE, problem, session
from pytest_llmdeploy.probes.patience import answers, timed_out

_P2P_OK = 0
_CALL = f"{SOURCE}: nvmlDeviceGetP2PStatus"


def nvlink_pairs(groups: Iterable[Sequence[Device]]) -> Mapping[str, Evidence]:
    """For every pair of devices within a group, 1 if they reach each other over NVLink, else 0.

    What vLLM itself asks before it uses its own all-reduce. The lanes of a GPU say that it reaches
    a switch, and not whom it reaches.
    """
    pairs = {
        f"{one.name} – {other.name}": (one, other)
        for group in groups
        for one, other in combinations(group, 2)
    }
    found = answers({name: _linked(*pair) for name, pair in pairs.items()})
    late = Evidence(None, "", _CALL, time.time(), timed_out(SOURCE))
    return {name: heard[0] if heard else late for name, heard in found.items()}


def _linked(one: Device, other: Device) -> Iterator[Evidence]:
    # Without a UUID nobody can ask for it, and why there is none, its memory tells.
    missing = next((device for device in (one, other) if not device.identity), None)
    if missing is not None:
        yield Evidence(None, "", _CALL, time.time(), missing.total.problem)
        return
    try:
        with session():
            handles = [pynvml.nvmlDeviceGetHandleByUUID(d.identity) for d in (one, other)]
            status = pynvml.nvmlDeviceGetP2PStatus(*handles, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            yield Evidence(float(status == _P2P_OK), "", _CALL, time.time())
    except FAULTS as fault:
        yield Evidence(None, "", _CALL, time.time(), problem(fault))
