"""Two runs do not share a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_llmdeploy.serving import Command, LaunchError
from pytest_llmdeploy.serving import process as module
from pytest_llmdeploy.serving.locks import DeviceLocks
from pytest_llmdeploy.serving.process import ServerProcess
from tests.serving.processes import eventually, is_alive, python
from tests.serving.survivors import Holder

SLEEP = "import time; time.sleep(60)"
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a server on devices; stops all at the end."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    started = []

    def start(*devices: str) -> ServerProcess:
        log = tmp_path / "server.log"
        started.append(ServerProcess(python(SLEEP), log, devices=devices, spec="mine"))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def test_a_device_has_one_server(start: Start) -> None:
    """The second run is told who has it and what to do; other devices are free."""
    first = start("GPU-1", "MIG-GPU-2/1/0")
    with pytest.raises(LaunchError) as caught:
        start("GPU-0", "MIG-GPU-2/1/0")
    assert str(caught.value).splitlines() == [
        f"MIG-GPU-2/1/0 is taken by another run (pid {os.getpid()}, spec mine)",
        "hint: wait until it has ended, or choose other devices with CUDA_VISIBLE_DEVICES",
    ]
    start("GPU-0")
    first.stop()
    start("GPU-1", "MIG-GPU-2/1/0")


def test_a_server_that_does_not_start_locks_nothing(tmp_path: Path, start: Start) -> None:
    """What can't be launched leaves the devices free."""
    command = Command(("/nonexistent",), {})
    with pytest.raises(OSError, match="could not be started"):
        ServerProcess(command, tmp_path / "log", devices=["GPU-3"])
    start("GPU-3")


def test_devices_are_free_when_the_sweep_is_over(holder: Holder, runtime_folder: Path) -> None:
    """When pytest is killed, its devices stay locked as long as anything of the server runs."""
    holder.process.kill()
    holder.process.wait()

    def is_free() -> bool:
        try:
            locks = DeviceLocks(runtime_folder, ["GPU-9"], "")
        except LaunchError:
            return False
        locks.release()
        return True

    eventually(is_free)
    assert not any(map(is_alive, holder.pids))
