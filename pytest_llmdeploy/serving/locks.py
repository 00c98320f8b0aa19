"""A lock for each device, so that two runs do not share one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pytest_llmdeploy.serving.command import LaunchError


class DeviceLocks:
    """The devices of one server, by UUID. Whoever has inherited `files` holds them, too: they are
    free when all have ended, or at `release`.
    """

    def __init__(self, folder: Path, devices: Sequence[str], holder: str) -> None:
        self.files: list[int] = []
        try:
            for device in devices:
                self.files.append(_locked(folder / f"{device.replace('/', '_')}.lock", device))
        except BaseException:
            self.release()
            raise
        for file in self.files:
            # Who holds it is for people to read: on a full disk it stays unsaid.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, holder.encode(), 0)

    def release(self) -> None:
        while self.files:
            file = self.files.pop()
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)


def _locked(path: Path, device: str) -> int:
    """The open file of a lock that we hold.

    Raises:
        LaunchError: when another run holds it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 1000, 0).decode("utf-8", "replace")
        os.close(file)
        msg = (
            f"{device} is taken by another run{f' ({holder})' if holder else ''}\n"
            "hint: wait until it has ended, or choose other devices with CUDA_VISIBLE_DEVICES"
        )
        raise LaunchError(msg) from None
    return file
