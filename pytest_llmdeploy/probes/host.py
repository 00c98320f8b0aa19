"""What this machine says before anything is launched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Devices
from pytest_llmdeploy.spec import Spec


@dataclass(frozen=True)
class Host:
    """The machine before the launch: the devices that the server will get."""

    devices: Devices
    nvlink: Mapping[str, Evidence]


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def read_host(spec: Spec, url: str | None = None) -> Host:
    """The host as a server of `spec` finds it; `url` is the server's when it runs already.
    On the CPU, devices come with the server.
    """
    if url is not None and not is_loopback(url):
        problem = "unsupported: the server runs on another machine"
        unseen = {"devices": Evidence(None, "", "this machine", problem=problem)}
        return Host(Devices((), "this machine", problem), unseen)
    if spec.hardware.device.platform == "cpu":
        problem = "unsupported: the CPU platform has no links between devices"
        unseen = {"devices": Evidence(None, "", "this machine", problem=problem)}
        return Host(Devices((), "this machine"), unseen)
    from pytest_llmdeploy.probes import nvml  # noqa: PLC0415 - only GPUs need NVML

    devices = nvml.read_gpus(visible_gpus(spec))
    return Host(devices, nvml.nvlink_pairs(_tensor_groups(spec, devices)))


def read_used_gpus(spec: Spec) -> Devices:
    """The GPUs that a server of this spec occupies: the first ones that it sees."""
    from pytest_llmdeploy.probes import nvml  # noqa: PLC0415 - only GPUs need NVML

    devices = nvml.read_gpus(visible_gpus(spec))
    used = devices.items[: spec.parallel.devices]
    per_stage = spec.parallel.tensor * spec.parallel.prefill_context
    staged = (
        replace(device, stage=rank // per_stage % spec.parallel.pipeline)
        for rank, device in enumerate(used)
    )
    return replace(devices, items=tuple(staged))


def _tensor_groups(spec: Spec, devices: Devices) -> list[list[int]]:
    """The NVML indices of every tensor-parallel group on this machine."""
    indices = [int(device.name.removeprefix("GPU ")) for device in devices]
    used, size = indices[: spec.parallel.devices], spec.parallel.tensor
    return [used[start : start + size] for start in range(0, len(used), size)]


def visible_gpus(spec: Spec) -> Sequence[int] | None:
    """The NVML indices that the server will see; None for all of them."""
    given = spec.serve.env.get("CUDA_VISIBLE_DEVICES")
    name = given.from_env or "" if given else "CUDA_VISIBLE_DEVICES"
    text = given.text if given and given.text is not None else os.environ.get(name)
    if text is None:
        return None
    entries = [entry.strip() for entry in text.split(",")]
    # As CUDA does: the first entry that is no index ends the list.
    cut = next((i for i, entry in enumerate(entries) if not entry.isdecimal()), len(entries))
    return [int(entry) for entry in entries[:cut]]
