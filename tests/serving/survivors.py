"""A process in pytest's place, that has launched a server and can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.processes import REPOSITORY, eventually, family, freeze, is_alive

_SCRIPT = """
import sys, time
from pathlib import Path
from pytest_llmdeploy.serving import process
from tests.serving.processes import FAMILY, python
process.GRACE_SECONDS, process.TERM_SECONDS = 0.3, 0.2
server = process.ServerProcess(python(FAMILY), Path(sys.argv[1]), devices=["GPU-9"], spec="s")
print(server._record, flush=True)
time.sleep(120)
"""


@dataclass(frozen=True)
class Holder:
    """Its process, the record of its launch as it was once the whole family ran, and where that
    is.
    """

    process: subprocess.Popen[str]
    path: Path
    record: dict[str, Any]

    @property
    def supervisor(self) -> int:
        pid: int = self.record["supervisor"][0]
        return pid

    @property
    def pids(self) -> list[int]:
        """Those of the server, of its child and of its grandchild."""
        return [pid for pid, _ in self.record["descendants"]]

    @property
    def scratch(self) -> Path:
        return Path(self.record["scratch"])

    def kill_with_its_supervisor(self) -> None:
        """At once: neither can sweep after the other."""
        freeze(self.process.pid)
        os.kill(self.supervisor, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        eventually(lambda: not is_alive(self.supervisor))


def hold(log: Path) -> Holder:
    """Starts one."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(log)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    with process.stdout as lines:
        path = Path(lines.readline().strip())
    # Who has not printed its pid yet dies of itself when nobody reads it.
    eventually(lambda: len(family(log.read_text())) == 3)
    eventually(lambda: len(json.loads(path.read_text())["descendants"]) == 3)
    return Holder(process, path, json.loads(path.read_text()))
