"""The scripted server: compiled, started on a core of its own, and asked for its log."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

TTFT_MS, TPOT_MS = 50, 10
_SOURCE = Path(__file__).with_name("server.c")


@dataclass(frozen=True)
class Served:
    """One request as the server saw it, in seconds of the monotonic clock."""

    user: int
    came: float
    writes: Sequence[float]

    @property
    def ttft(self) -> float:
        return self.writes[0] - self.came

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.writes)]


@dataclass
class Scripted:
    """A running server; `log` is filled when it has been stopped."""

    url: str
    log: list[Served] = field(default_factory=list)


def compiled(folder: Path) -> Path:
    """The server's program.

    Raises:
        FileNotFoundError: where there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("cc is needed to compile the scripted server")
    program = folder / "server"
    subprocess.run([compiler, "-O2", "-o", program, _SOURCE], check=True)
    return program


@contextlib.contextmanager
def serving(program: Path, core: int) -> Iterator[Scripted]:
    """A server on its core."""
    with tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        path = Path(folder) / "log"
        script = [str(TTFT_MS * 1000), str(TPOT_MS * 1000), str(path)]
        process = subprocess.Popen([program, *script], stdout=subprocess.PIPE)
        try:
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            scripted = Scripted(f"http://127.0.0.1:{int(process.stdout.readline())}")
            yield scripted
        finally:
            process.terminate()
            process.communicate()
        served = map(_served, path.read_text().splitlines())
        # What was only asked to see whether the server is there has one token.
        scripted.log += [each for each in served if len(each.writes) > 1]


def _served(line: str) -> Served:
    user, came, *writes = map(int, line.split())
    return Served(user, came / 1e9, [write / 1e9 for write in writes])
