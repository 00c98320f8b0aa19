"""Runs of the gate in processes of their own, forked from one that has imported everything.

As a program: reads a run to make from each line of standard input, writes its pid, and when it has
ended its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.specs import REPOSITORY


@dataclass
class Runs:
    """Starts runs, one after the other."""

    _program: subprocess.Popen[str] = field(init=False)
    _running: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # What a run needs is asked for by name: looking for all that is installed takes longer.
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **own},
            cwd=REPOSITORY,
        )

    def start(self, folder: Path, *arguments: str, **settings: Any) -> Run:
        """A run in `folder`; `settings` are those of `_set`."""
        self._kill()
        asked = {"folder": str(folder), "arguments": arguments, "settings": settings}
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(asked) + "\n")
        self._program.stdin.flush()
        self._running = self._read()
        return Run(self, folder, self._running)

    def wait(self) -> int:
        """The exit code of the run that goes on; minus the signal that ended it."""
        self._running = 0
        return self._read()

    def _read(self) -> int:
        assert self._program.stdout is not None
        return int(self._program.stdout.readline())

    def _kill(self) -> None:
        """Ends a run that a test has given up."""
        if self._running:
            with suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        self._kill()
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.stdout.close()
        self._program.wait()


@dataclass(frozen=True)
class Run:
    """One of them."""

    runs: Runs
    folder: Path
    pid: int

    def wait(self) -> int:
        return self.runs.wait()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def log(self) -> str:
        """That of its server."""
        found = list((self.folder / ".llmdeploy").glob("*.log"))
        return found[0].read_text() if found else ""

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those of its launches that have not ended."""
        found = []
        for path in (self.folder / "llmdeploy").glob("*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:
                continue
        return found


def main() -> None:
    from pytest_llmdeploy import gate  # noqa: F401, PLC0415 - once, for all runs
    from pytest_llmdeploy.load import runner  # noqa: F401, PLC0415
    from pytest_llmdeploy.serving import start  # noqa: F401, PLC0415

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(**json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(folder: str, arguments: list[str], settings: dict[str, Any]) -> None:
    import pytest  # noqa: PLC0415 - in the program only

    os.chdir(folder)
    os.environ["XDG_RUNTIME_DIR"] = folder
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    # In the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _set(**settings)
    code = 1
    try:
        code = pytest.main(["-pno:cacheprovider", "-ppytest_llmdeploy.plugin", *arguments])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set(*, grace: float = 0.3, serves: bool = False) -> None:
    """The patience with a server, and whether the one that stands in for vLLM ever answers."""
    from pytest_llmdeploy.serving import process, start  # noqa: PLC0415 - in the program only
    from pytest_llmdeploy.spec import Spec  # noqa: PLC0415
    from tests.serving.processes import FAMILY, python  # noqa: PLC0415

    process.GRACE_SECONDS, process.TERM_SECONDS = grace, 0.2

    def command(_spec: Spec, port: int) -> object:
        serve = ("serve", f"--port={port}") if serves else ()
        return python(FAMILY, "stubborn", *serve, PYTHONPATH=str(REPOSITORY))

    vars(start)["launch_command"] = command


if __name__ == "__main__":
    main()
