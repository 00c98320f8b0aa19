"""What this machine says before anything is launched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.visible import visible_devices
from pytest_llmdeploy.spec import Spec


@dataclass(frozen=True, slots=True)
class Driver:
    """The versions of the NVIDIA driver and of the CUDA that it supports; `problem` says why they
    can't be read.
    """

    version: str = ""
    cuda: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Host:
    """The machine before the launch: the devices that the server will get, and for every pair in a
    tensor-parallel group whether it is linked (1) or not (0).
    """

    devices: Devices
    nvlink: Mapping[str, Evidence]
    driver: Driver = Driver(problem="unsupported: the driver can't be seen here")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def read_host(spec: Spec, url: str | None = None) -> Host:
    """The host as a server of `spec` finds it; `url` is the server's when it runs already.
    On the CPU, devices come with the server.
    """
    if url is not None and spec.attach and spec.attach.probes:
        from pytest_llmdeploy.probes.exporter import Exporter  # noqa: PLC0415 - if it is asked

        return Exporter.of(spec.attach.probes).host(spec.parallel.tensor)
    if url is not None and not is_loopback(url):
        problem = "unsupported: the server runs on another machine"
        unseen = {"devices": Evidence(None, "", "this machine", problem=problem)}
        return Host(Devices((), "this machine", problem), unseen)
    if spec.hardware.device.platform == "cpu":
        problem = "unsupported: the CPU platform has no links between devices"
        unseen = {"devices": Evidence(None, "", "this machine", problem=problem)}
        return Host(Devices((), "this machine"), unseen)
    from pytest_llmdeploy.probes.gpus import read_gpus  # noqa: PLC0415 - only GPUs need NVML
    from pytest_llmdeploy.probes.links import nvlink_pairs  # noqa: PLC0415
    from pytest_llmdeploy.probes.nvml import read_driver  # noqa: PLC0415

    devices = read_gpus(visible_devices(spec))
    if devices.problem:
        unseen = {"devices": Evidence(None, "", devices.source, problem=devices.problem)}
        return Host(devices, unseen, read_driver())
    return Host(devices, nvlink_pairs(_tensor_groups(spec, devices)), read_driver())


def read_used_gpus(spec: Spec, fields: Collection[Field] | None = None) -> Devices:
    """The GPUs that a server of this spec occupies: the first ones that it sees. With `fields`, no
    more is read of them than their memory and these.
    """
    from pytest_llmdeploy.probes.gpus import read_gpus  # noqa: PLC0415 - only GPUs need NVML

    devices = read_gpus(visible_devices(spec), fields)
    return staged(spec, devices.first(spec.parallel.devices))


def staged(spec: Spec, devices: Devices) -> Devices:
    """Devices in the order of the ranks, each with its pipeline stage."""
    per_stage = spec.parallel.tensor * spec.parallel.prefill_context
    items = (
        replace(device, stage=rank // per_stage % spec.parallel.pipeline)
        for rank, device in enumerate(devices)
    )
    return replace(devices, items=tuple(items))


def _tensor_groups(spec: Spec, devices: Devices) -> list[Sequence[Device]]:
    """The devices of every tensor-parallel group on this machine."""
    used, size = devices[: spec.parallel.devices], spec.parallel.tensor
    return [used[start : start + size] for start in range(0, len(used), size)]
