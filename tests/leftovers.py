"""What is there before and after: processes, listening ports, shared memory, temporary files."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - that of the system, not a file of ours


class Family:
    """The processes that descend from this one from now on, whoever their parent is later: what
    loses its parent becomes a child of this process.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = set(psutil.Process().children(recursive=True))

    def alive(self, waited_for: Sequence[int] = ()) -> list[psutil.Process]:
        """Those that live. The dead are buried, but for those whom somebody else waits for."""
        return list(self._alive(waited_for))

    def _alive(self, waited_for: Sequence[int]) -> Iterator[psutil.Process]:
        for process in psutil.Process().children(recursive=True):
            if process in self._before:
                continue
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process
                elif process.ppid() == os.getpid() and process.pid not in waited_for:
                    os.waitpid(process.pid, os.WNOHANG)


def title(process: psutil.Process) -> str:
    """The beginning of its command line; empty when it is gone."""
    with suppress(psutil.Error):
        return " ".join(filter(None, process.cmdline()[:4]))
    return ""


def is_listening(port: int) -> bool:
    """Whether a connection to this port of the loopback is taken."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def shared_memory() -> set[str]:
    """All segments and semaphores of this machine."""
    return {path.name for path in _SHARED_MEMORY.iterdir()}


def mapped(pid: int) -> Iterator[str]:
    """Those that a process has."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, found, name = line.partition(f" {_SHARED_MEMORY}/")
            if found:
                yield name.removesuffix(" (deleted)")


def snapshot(family: Family, scratch: Path) -> Mapping[str, set[str]]:
    """What there is of each kind: of this process and its family, of the machine's shared memory,
    and in the folder for temporary files.
    """
    alive = family.alive()
    return {
        "processes": {f"{process.pid} {title(process)}" for process in alive},
        "listening sockets": set(_listening([psutil.Process(), *alive])),
        "threads of ours": {f"{t.name} {t.ident}" for t in threading.enumerate()},
        "open files of ours": set(_open_files()),
        "shared memory": shared_memory(),
        "temporary files": {str(path.relative_to(scratch)) for path in scratch.rglob("*")},
    }


def _listening(processes: Sequence[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with suppress(psutil.Error):
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    yield f"{process.pid} {connection.laddr}"


def _open_files() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield f"{entry.name} {entry.readlink()}"
