"""A server that we started: its supervisor, its log, and its end."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from pytest_llmdeploy.secrets import kept
from pytest_llmdeploy.serving import launches, supervisor
from pytest_llmdeploy.serving.command import Command
from pytest_llmdeploy.serving.listening import addresses, is_open, named
from pytest_llmdeploy.serving.locks import DeviceLocks
from pytest_llmdeploy.serving.server import Stopped

GRACE_SECONDS = 10.0
TERM_SECONDS = 2.0
_SPAWN_SECONDS = 20.0
_SWEEP_SECONDS = 15.0
# A dying server prints a traceback for every request: the line that says why is far above the end.
_TAIL_BYTES = 8 * 1024**2
_LINE_BYTES = 8 * 1024
# It is under TMPDIR unless it is named, and with a fresh one torch would compile anew each time.
_COMPILE_CACHE = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"


class ServerProcess:
    """The process tree of one server. `stop` is idempotent, and is due on every way out.

    `devices` are the UUIDs of the GPUs that it gets, locked until it has gone; `spec` names it.
    """

    def __init__(
        self, command: Command, log: Path, *, devices: Sequence[str] = (), spec: str = ""
    ) -> None:
        """Raises OSError or LaunchError when nothing can be started, and leaves nothing then."""
        self.command = command
        self.log = log
        self.started = time.monotonic()
        self._said: dict[str, Any] = {}
        self._running, self._gone = threading.Event(), threading.Event()
        self._swept = launches.Swept()
        self._stopped: Stopped | None = None
        self._lifeline: int | None = None
        folder = launches.runtime_folder()
        with ExitStack() as undo:
            self._locks = DeviceLocks(folder, devices, f"pid {os.getpid()}, spec {spec}")
            undo.callback(self._locks.release)
            # Unix sockets allow 107 characters for a path: keep it short.
            self._scratch = Path(tempfile.mkdtemp(prefix=launches.SCRATCH_PREFIX))
            undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._record = launches.begin(folder, spec, devices, self._scratch)
            undo.callback(self._record.unlink, missing_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(b"")
            # What a server says is nobody else's business, secrets or not.
            log.chmod(0o600)
            report = self._start_supervisor()
            undo.pop_all()
        threading.Thread(target=self._follow, args=[report], daemon=True).start()
        self.pid = self._wait_for_pid()

    @property
    def seconds(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.started

    @property
    def returncode(self) -> int | None:
        """The server's exit code; None while it runs. A crashed vLLM may exit 0."""
        code: int | None = self._said.get("returncode")
        return self._supervisor.returncode if code is None and self._gone.is_set() else code

    def log_text(self, most: int = _TAIL_BYTES) -> str:
        """The end of the log, so many bytes at most."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most))
            return file.read().decode("utf-8", "replace")
        return ""

    def last_line(self) -> str:
        lines = [line.strip() for line in self.log_text(_LINE_BYTES).splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def tree(self) -> list[psutil.Process]:
        """The server's process and all its descendants, alive now."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        return []

    def stop(self) -> Stopped:
        """Ends the server and everything that descends from it.

        Whatever interrupts it, a second Ctrl-C or a time-out, only ends the patience with the
        server: it is raised when all has gone.
        """
        interrupt = None
        while self._stopped is None:
            try:
                self._stopped = self._end()
            except Exception:
                raise
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
                self._supervisor.send_signal(signal.SIGUSR1)
        if interrupt is not None:
            raise interrupt
        return self._stopped

    def _end(self) -> Stopped:
        began, tree = time.monotonic(), self.tree()
        listening = addresses(tree)
        if self._lifeline is not None:
            lifeline, self._lifeline = self._lifeline, None
            os.close(lifeline)
        deadline = began + GRACE_SECONDS + TERM_SECONDS + _SWEEP_SECONDS
        while not self._gone.wait(max(0.0, deadline - time.monotonic())):
            # It hangs: its record says what it should have ended.
            self._supervisor.kill()
            deadline = time.monotonic() + _SWEEP_SECONDS
        return Stopped(
            processes=[named(process.pid) for process in tree if is_alive(process)],
            seconds=time.monotonic() - began,
            sockets=[f"{host}:{port}" for host, port in listening if is_open(port, host)],
            files=[str(self._scratch)] if self._scratch.exists() else [],
            shared_memory=self._said.get("left", self._swept.left),
            removed={
                "processes": self._said.get("killed", self._swept.ended),
                "temporary files": self._said.get("files", self._swept.files),
                "shared memory": self._said.get("shared", self._swept.shared),
            },
        )

    def _start_supervisor(self) -> int:
        """Starts it; the read end of the pipe that it reports to."""
        lifeline, held = os.pipe()
        report, written = os.pipe()
        program = [sys.executable, "-I", supervisor.__file__]
        places = [lifeline, written, self._record, self.log, GRACE_SECONDS, TERM_SECONDS]
        places.append(",".join(kept()))
        # A worker is known by its title, and a process whose first variable changes can no longer
        # set that (setproctitle): the first one is one that nobody changes.
        first = {"LLMDEPLOY_RUN": str(self._scratch)}
        scratch = {"TMPDIR": str(self._scratch)}
        environment = {**first, **os.environ, **self.command.environment, **scratch}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", _COMPILE_CACHE)
        try:
            with self.log.open("ab") as log:
                self._supervisor = subprocess.Popen(
                    [*program, *map(str, places), "--", *self.command.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                    # The locks are its own, too: it outlives pytest by what it has to sweep.
                    pass_fds=[lifeline, written, *self._locks.files],
                    start_new_session=True,
                )
        except BaseException:
            os.close(held)
            os.close(report)
            raise
        finally:
            os.close(lifeline)
            os.close(written)
        self._lifeline = held
        return report

    def _follow(self, report: int) -> None:
        """Reads what the supervisor says, until it has gone; what it left is swept at once."""
        try:
            with os.fdopen(report) as lines:
                for line in lines:
                    self._said |= json.loads(line)
                    self._running.set()
            self._supervisor.wait()
            self._swept = launches.sweep(self._record)
        finally:
            self._locks.release()
            self._gone.set()
            self._running.set()

    def _wait_for_pid(self) -> int:
        try:
            self._running.wait(_SPAWN_SECONDS)
        except BaseException:
            self.pid = self._supervisor.pid
            self.stop()
            raise
        pid: int | None = self._said.get("pid")
        if pid is not None:
            return pid
        self.pid = self._supervisor.pid
        self.stop()
        said = self._said.get("error", self.last_line())
        msg = f"the server's process could not be started: {said}"
        raise OSError(msg)


def is_alive(process: psutil.Process) -> bool:
    """Whether that very process runs; a zombie does not."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
