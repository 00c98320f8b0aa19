"""Who listens on a port of this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

# Of the addresses that can be listened on, those that 127.0.0.1 leads to.
_LOOPBACK = {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"}  # noqa: S104 - to know it
_CONNECT_SECONDS = 1.0
_UNSEEN = "a process that can't be seen from here"


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens on that port. To ask costs next to nothing."""
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def listeners(port: int) -> set[int | None]:
    """The processes that listen on 127.0.0.1:`port`; None for one of another user. It takes a look
    at every process.
    """
    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and getattr(connection.laddr, "port", None) == port
        and getattr(connection.laddr, "ip", None) in _LOOPBACK
    }


def addresses(processes: Iterable[psutil.Process]) -> Sequence[tuple[str, int]]:
    """Where these processes listen: hosts and ports."""
    found: set[tuple[str, int]] = set()
    for process in processes:
        with suppress(psutil.Error):
            connections = process.net_connections("tcp")
            found |= {
                (c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN
            }
    return sorted(found)


def named(pid: int | None) -> str:
    """A process as a person looks it up."""
    if pid is None:
        return _UNSEEN
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        # The kernel's name of a process ends after 15 letters; vLLM's titles are longer.
        title = next(iter(process.cmdline()), "")
        return f"{title if title.startswith('VLLM::') else process.name()} (pid {pid})"
    return f"pid {pid}"
