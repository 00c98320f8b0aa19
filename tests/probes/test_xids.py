"""XIDs as they are watched for, over the real pynvml and the fake driver."""

from __future__ import annotations

import time
from functools import partial

import pynvml
import pytest

from pytest_llmdeploy.probes.devices import Devices
from pytest_llmdeploy.probes.gpus import read_gpus
from pytest_llmdeploy.probes.watch import XidWatch
from tests.fake_nvml import H100_MIG, FakeNvml, Value
from tests.serving.processes import eventually


def is_seen(watch: XidWatch, gpu: int, xid: int) -> bool:
    return xid in watch.read().seen.get(f"GPU {gpu}", ())


def test_an_xid_is_seen_while_somebody_watches(machine: FakeNvml) -> None:
    """By the name of its GPU, in order; what was there before is not counted."""
    machine.update({"gpu4.xid": 48})
    watch = XidWatch(read_gpus())
    for gpu, xid in ((2, 79), (4, 31), (2, 63)):
        machine.update({f"gpu{gpu}.xid": xid})
        eventually(partial(is_seen, watch, gpu, xid))
    watch.close()
    machine.update({"gpu5.xid": 45})
    found = watch.read()
    assert found.seen == {"GPU 2": (79, 63), "GPU 4": (31,)}
    assert found.devices == tuple(f"GPU {index}" for index in range(8))
    assert (found.problem, found.seconds > 0) == ("", True)
    assert found == watch.read()


def test_a_gpu_that_fell_off_the_bus_is_named(machine: FakeNvml) -> None:
    """The last that is heard of it is its XID."""
    watch = XidWatch(read_gpus())
    machine.update({"gpu3.xid": 79, "gpu3.error.UUID": pynvml.NVML_ERROR_GPU_IS_LOST})
    eventually(lambda: "GPU 3" in watch.read().seen)
    watch.close()
    assert watch.read().seen == {"GPU 3": (79,)}


def test_slices_are_watched_with_their_gpu(machine: FakeNvml) -> None:
    """An XID of the GPU is one of each of its slices, and of no other's."""
    machine.write(H100_MIG, count=2)
    gpus = read_gpus()
    first, second, *others = [device.name for device in gpus]
    watch = XidWatch(gpus)
    machine.update({"gpu0.xid": 94})
    eventually(lambda: len(watch.read().seen) == 2)
    watch.close()
    found = watch.read()
    assert found.seen == {first: (94,), second: (94,)}
    assert (found.devices, found.problem) == ((first, second, *others), "")


def test_the_end_is_at_once(machine: FakeNvml) -> None:
    """Nobody waits for an event that does not come."""
    del machine
    watch = XidWatch(read_gpus())
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 1
    assert watch.read().seen == {}


@pytest.mark.parametrize(
    ("overrides", "problem", "watched"),
    [
        (
            {"gpu1.error.RegisterEvents": pynvml.NVML_ERROR_NOT_SUPPORTED},
            "unsupported: NVML says not supported (GPU 1)",
            7,
        ),
        (
            {"error.EventSetCreate": pynvml.NVML_ERROR_NO_PERMISSION},
            "no permission: NVML says insufficient permissions",
            0,
        ),
        (
            {"error.EventSetWait_v2": pynvml.NVML_ERROR_GPU_IS_LOST},
            "lost: NVML says GPU is lost",
            8,
        ),
        (
            {"error.InitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED},
            "error: the NVIDIA driver is not loaded",
            0,
        ),
    ],
    ids=["one GPU", "no permission", "lost", "no driver"],
)
def test_what_can_not_be_watched_says_why(
    machine: FakeNvml, overrides: dict[str, Value], problem: str, watched: int
) -> None:
    """It never looks like nothing was reported."""
    gpus = read_gpus()
    machine.update(overrides)
    watch = XidWatch(gpus)
    eventually(lambda: bool(watch.read().problem))
    watch.close()
    found = watch.read()
    assert (found.problem, len(found.devices)) == (problem, watched)


def test_devices_that_are_not_there(machine: FakeNvml) -> None:
    """Why there are none is why nothing is watched."""
    del machine
    watch = XidWatch(Devices((), "NVML", "error: no driver"))
    watch.close()
    assert (watch.read().problem, watch.read().devices) == ("error: no driver", ())
