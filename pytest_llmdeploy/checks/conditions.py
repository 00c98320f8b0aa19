"""To which specs a check applies that no key calls for."""

from pytest_llmdeploy.spec import Spec


def on_gpus(spec: Spec) -> bool:
    """The devices are GPUs."""
    return spec.hardware.device.platform == "cuda"


def under_load(spec: Spec) -> bool:
    """There is traffic."""
    return bool(spec.workloads)


def gpus_under_load(spec: Spec) -> bool:
    """There is traffic, on GPUs."""
    return on_gpus(spec) and under_load(spec)


def on_a_fabric(spec: Spec) -> bool:
    """The GPUs are of those that register with their NVSwitches: since Hopper (9.0)."""
    gpu = spec.hardware.device.gpu
    return gpu is not None and gpu.link == "nvlink" and gpu.compute_capability >= (9, 0)


def can_be_sliced(spec: Spec) -> bool:
    """The GPUs are whole ones of a kind that has MIG: A100 (8.0) has, L40S (8.9) has not."""
    gpu = spec.hardware.device.gpu
    return gpu is not None and gpu.compute_capability[1] == 0
