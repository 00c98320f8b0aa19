"""A server that we started: its supervisor, its log, and its end."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_llmdeploy.serving import supervisor
from pytest_llmdeploy.serving.command import Command
from pytest_llmdeploy.serving.server import Stopped

GRACE_SECONDS = 10.0
_SPAWN_SECONDS = 20.0
# A dying server prints a traceback for every request: the line that says why is far above the end.
_TAIL_BYTES = 8 * 1024**2
_LINE_BYTES = 8 * 1024
# It is under TMPDIR unless it is named, and with a fresh one torch would compile anew each time.
_COMPILE_CACHE = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"


class ServerProcess:
    """The process tree of one server. `stop` is idempotent, and is due on every way out."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command = command
        self.log = log
        self.started = time.monotonic()
        # Unix sockets allow 107 characters for a path: keep it short.
        self._folder = Path(tempfile.mkdtemp(prefix="llmd-"))
        self._status = self._folder / "status.json"
        self._stopped: Stopped | None = None
        scratch = self._folder / "tmp"
        scratch.mkdir()
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, self._lifeline = os.pipe()
        script = [sys.executable, "-I", supervisor.__file__]
        given = [str(lifeline), str(self._status), str(scratch), str(GRACE_SECONDS), "--"]
        # A worker is known by its title, and a process whose first variable changes can no longer
        # set that (setproctitle): the first one is one that nobody changes.
        first = {"LLMDEPLOY_RUN": str(self._folder)}
        environment = {**first, **os.environ, **command.environment, "TMPDIR": str(scratch)}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", _COMPILE_CACHE)
        with log.open("wb") as output:
            self._supervisor = subprocess.Popen(
                [*script, *given, *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lifeline],
                start_new_session=True,
            )
        os.close(lifeline)
        self.pid = self._wait_for_pid()

    @property
    def seconds(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.started

    @property
    def returncode(self) -> int | None:
        """The server's exit code; None while it runs. A crashed vLLM may exit 0."""
        code = self._read_status().get("returncode")
        if code is None and self._supervisor.poll() is not None:
            code = self._supervisor.returncode
        return code

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
        """Ends the server and everything that descends from it."""
        if self._stopped is None:
            started = time.monotonic()
            tree = self.tree()
            os.close(self._lifeline)
            try:
                self._supervisor.wait(GRACE_SECONDS + 15)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()
            left = [_name(process) for process in tree if process.is_running()]
            self._stopped = Stopped(left, time.monotonic() - started)
            shutil.rmtree(self._folder, ignore_errors=True)
        return self._stopped

    def _wait_for_pid(self) -> int:
        deadline = time.monotonic() + _SPAWN_SECONDS
        while time.monotonic() < deadline:
            if (pid := self._read_status().get("pid")) is not None:
                return pid
            if self._supervisor.poll() is not None:
                break
            time.sleep(0.01)
        self.pid = self._supervisor.pid
        text = self.last_line()
        self.stop()
        msg = f"the server's process could not be started: {text}"
        raise OSError(msg)

    def _read_status(self) -> dict[str, int]:
        try:
            record: dict[str, int] = json.loads(self._status.read_text())
        except (OSError, ValueError):
            return {}
        return record


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.name()} (pid {process.pid})"
    return f"pid {process.pid}"
