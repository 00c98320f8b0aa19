"""Who has a port."""

from __future__ import annotations

import os
import socket

import psutil

from pytest_llmdeploy.serving.listening import is_open, listeners, named
from pytest_llmdeploy.serving.process import free_port


def test_who_listens() -> None:
    """The process that does; nobody on a port that is only bound, or free."""
    with socket.create_server(("127.0.0.1", 0)) as open_, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (open_, bound)]
        assert list(map(is_open, [*ports, free_port()])) == [True, False, False]
        assert list(map(listeners, ports)) == [{os.getpid()}, set()]


def test_who_listens_on_every_address() -> None:
    """A server of 0.0.0.0 has the port of 127.0.0.1; one of another address has not."""
    for address, found in (("0.0.0.0", {os.getpid()}), ("127.0.0.2", set())):
        with socket.create_server((address, 0)) as server:
            assert listeners(server.getsockname()[1]) == found


def test_the_name_of_a_process() -> None:
    """Its own name and pid; of one that is gone, the pid; of one that is hidden, that it is."""
    me = psutil.Process()
    assert named(me.pid) == f"{me.name()} (pid {me.pid})"
    assert named(2**22) == "pid 4194304"
    assert named(None) == "a process that can't be seen from here"
