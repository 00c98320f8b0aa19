"""When a fault strikes, and how: functions of a run of the gate."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.leftovers import is_listening
from tests.live.conftest import Run
from tests.specs import REPOSITORY

Strike = Callable[[Run], None]

API = "openai.api_server"
ENGINE = "VLLM::EngineCore"
WORKER = "VLLM::Worker"
SUPERVISOR = "supervisor"
# A file system of the gate's own for all that it writes, with so many bytes in use.
_MOUNT = (
    'mount -t tmpfs -o size=16m tmpfs "$1" && cd "$1" && mkdir t && '
    '{ head -c "$0" /dev/zero > filler; shift; exec "$@"; }'
)


def at_once(_run: Run) -> bool:
    return True


def starting(run: Run) -> object:
    """The server has workers, and is not ready."""
    return run.worker()


def launched(run: Run) -> object:
    """The server's process is up, and has not yet a port."""
    return run.named(API)


def at_rest(run: Run) -> bool:
    """All rows of a server at rest are there; the traffic waits for `go`."""
    return (run.folder.parent / "held").exists()


def in_traffic(run: Run) -> bool:
    """Some seconds into the traffic."""
    return run.completions() > 30


def go(strike: Strike, order: str = "go") -> Strike:
    """And then the run goes on, from rest into the traffic; or as the check is ordered to."""

    def struck(run: Run) -> None:
        strike(run)
        (run.folder.parent / "go").write_text(order)

    return struck


def both(first: Strike, second: Strike) -> Strike:
    """One after the other."""

    def strike(run: Run) -> None:
        first(run)
        second(run)

    return strike


def nothing(_run: Run) -> None:
    """The run goes on as it is."""


def send(number: signal.Signals, *names: str) -> Strike:
    """A signal to the processes with these in their command lines."""

    def strike(run: Run) -> None:
        for process in [_named(run, name) for name in names]:
            process.send_signal(number)

    return strike


def kill(*names: str) -> Strike:
    return send(signal.SIGKILL, *names)


def stop(*names: str) -> Strike:
    return send(signal.SIGSTOP, *names)


def kill_pytest(run: Run) -> None:
    run.process.kill()


def kill_pytest_and(name: str) -> Strike:
    """Both at once: the one has no time to see the other's end."""

    def strike(run: Run) -> None:
        other = _named(run, name)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            run.process.send_signal(number)
            other.send_signal(number)

    return strike


def terminate(run: Run) -> None:
    run.process.terminate()


def press(*pauses: float) -> Strike:
    """Ctrl-C, which goes to the whole process group; once more after each pause."""

    def strike(run: Run) -> None:
        os.killpg(run.process.pid, signal.SIGINT)
        for pause in pauses:
            _wait(run, pause)
            with suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGINT)

    return strike


def cancel(run: Run) -> None:
    """As a CI runner does: SIGINT, after 7.5 s SIGTERM, after 2.5 s SIGKILL."""
    run.process.send_signal(signal.SIGINT)
    for pause, number in ((7.5, signal.SIGTERM), (2.5, signal.SIGKILL)):
        _wait(run, pause)
        run.process.send_signal(number)


def take_port(run: Run) -> None:
    """Somebody listens on it, and never answers."""
    listener = run.beside.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", _port(run)))
    listener.listen()


def serve_on_port(run: Run) -> None:
    """Somebody else's server, with the same model, is there first."""
    port = _port(run)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.fake_vllm", f"--port={port}"], cwd=REPOSITORY
    )
    run.beside.callback(_end, server)
    while not is_listening(port):
        time.sleep(0.01)


def lose_temporary_folder(run: Run) -> None:
    """Everything under the gate's TMPDIR is deleted, and it itself."""
    shutil.rmtree(run.folder / "t")


def lose_log(run: Run) -> None:
    for log in run.folder.glob("cache/d/llmdeploy/*.log"):
        log.unlink()


def on_disk(used: str) -> Callable[[Path], Sequence[str]]:
    """A wrapper that runs the gate on a file system of 16 MiB of its own."""

    def wrapper(folder: Path) -> Sequence[str]:
        as_root = () if os.geteuid() == 0 else ("--map-root-user",)
        return ["unshare", "--mount", *as_root, "sh", "-c", _MOUNT, used, str(folder)]

    return wrapper


def fill(run: Run) -> None:
    """Not one more byte fits on the file system that the gate has of its own."""
    inside = Path(f"/proc/{run.process.pid}/root{run.folder}")
    with suppress(OSError), (inside / "more").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def _named(run: Run, name: str) -> psutil.Process:
    process = run.named(name)
    assert process is not None, f"no {name} runs"
    return process


def _port(run: Run) -> int:
    (port,) = (a for a in _named(run, API).cmdline() if a.startswith("--port="))
    return int(port.partition("=")[2])


def _wait(run: Run, seconds: float) -> None:
    """For so long, or until the gate has ended."""
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(seconds)


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.poll() is None, "somebody else's server was ended"
    server.kill()
    server.wait()
