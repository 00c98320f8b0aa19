"""Nothing outlives its server, whoever dies first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmdeploy.serving import Command
from pytest_llmdeploy.serving import process as module
from pytest_llmdeploy.serving.process import ServerProcess
from tests.serving.processes import (
    FAMILY,
    REPOSITORY,
    eventually,
    family,
    is_alive,
    python,
)

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts scripts as servers, with little patience; stops them all at the end."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    started = []

    def start(script: str, *arguments: str, **environment: str) -> ServerProcess:
        command = python(script, *arguments, **environment)
        started.append(ServerProcess(command, tmp_path / "logs" / "server.log"))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def with_family(start: Start, *arguments: str) -> tuple[ServerProcess, list[int]]:
    server = start(FAMILY, *arguments)
    eventually(lambda: len(family(server.log_text())) == 3)
    return server, family(server.log_text())


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_the_exit_code_is_seen(start: Start, script: str, code: int) -> None:
    """Also an exit code of 0 is an end: a crashed vLLM has one."""
    server = start(script)
    eventually(lambda: server.returncode is not None)
    assert server.returncode == code


def test_a_running_server_has_no_exit_code(start: Start) -> None:
    """None as long as it runs; the pid is that of the server itself."""
    server = start("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    eventually(lambda: bool(server.last_line()))
    assert server.last_line() == str(server.pid)
    assert server.returncode is None


def test_stop_ends_the_whole_family(start: Start) -> None:
    """All ignore SIGTERM, one of them in its own session: they go, and in bounded time."""
    server, pids = with_family(start, "stubborn")
    assert sorted(process.pid for process in server.tree()) == sorted(pids)
    stopped = server.stop()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert (list(stopped.processes), stopped.seconds < 12) == ([], True)
    assert server.stop() is stopped


def test_a_killed_server_leaves_no_orphans(start: Start) -> None:
    """When the server itself is killed, what it had started goes too, without being asked."""
    server, pids = with_family(start)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, pids)))
    eventually(lambda: server.returncode == -signal.SIGKILL)


HOLDER = """
import json, sys, time
from pathlib import Path
from pytest_llmdeploy.serving import process
from tests.serving.processes import FAMILY, eventually, family, python
process.GRACE_SECONDS = 0.3
server = process.ServerProcess(python(FAMILY), Path(sys.argv[1]))
eventually(lambda: len(family(server.log_text())) == 3)
print(json.dumps([server._supervisor.pid, str(server._folder / "tmp"), *family(server.log_text())]))
sys.stdout.flush()
time.sleep(120)
"""


def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    """When pytest ends, even by kill -9, the supervisor and the server end after it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert holder.stdout is not None
    with holder.stdout as lines:
        supervisor, scratch, *pids = json.loads(lines.readline())
    assert all(map(is_alive, [supervisor, *pids]))
    holder.kill()
    holder.wait()
    eventually(lambda: not any(map(is_alive, [supervisor, *pids])))
    assert not Path(scratch).exists()


def test_a_killed_supervisor_takes_the_server_along(start: Start) -> None:
    """The server does not go on without anybody to end it."""
    server = start("import time; time.sleep(60)")
    server._supervisor.kill()
    eventually(lambda: not is_alive(server.pid))
    assert server.returncode == -signal.SIGKILL


def test_the_scratch_folder_goes(start: Start) -> None:
    """A server has a short TMPDIR of its own, and what it leaves there is removed."""
    server = start(
        "import os, tempfile, time\n"
        "path = tempfile.mkdtemp(); print(path, flush=True); time.sleep(60)"
    )
    eventually(lambda: bool(server.last_line()))
    left = Path(server.last_line())
    assert left.is_dir()
    assert len(str(left.parent)) < 60
    server.stop()
    assert not left.parent.exists()
    assert not server._folder.exists()


def test_the_log_can_be_read_all_along(start: Start) -> None:
    """Both streams, while it runs and after its end, whatever bytes are in them."""
    server = start(
        "import sys, time\n"
        "sys.stdout.buffer.write(b'out \\xff\\n'); sys.stdout.flush()\n"
        "print('err', file=sys.stderr, flush=True); time.sleep(60)"
    )
    eventually(lambda: server.last_line() == "err")
    assert server.log_text() == "out \ufffd\nerr\n"
    server.stop()
    assert server.log_text() == "out \ufffd\nerr\n"


def test_the_end_of_a_long_log_is_read(start: Start) -> None:
    """A server that writes without end does not fill our memory."""
    server = start("print('x' * 100 + '\\n', end='' ) or [print('y' * 99) for _ in range(20_000)]")
    eventually(lambda: server.returncode is not None)
    assert len(server.log_text(256 * 1024)) <= 256 * 1024
    assert server.last_line() == "y" * 99


def test_the_environment_of_the_spec_is_added(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the spec sets is laid over what is inherited."""
    monkeypatch.setenv("FROM_HERE", "1")
    monkeypatch.setenv("FROM_BOTH", "1")
    server = start(
        "import os; print(os.environ['FROM_HERE'], os.environ['FROM_BOTH'])", FROM_BOTH="2"
    )
    eventually(lambda: server.returncode is not None)
    assert server.last_line() == "1 2"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """What can't be started says so, and leaves nothing."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    began = time.monotonic()
    command = Command(("/nonexistent/vllm", "serve"), {})
    with pytest.raises(OSError, match=r"could not be started: .*No such file.*/nonexistent/vllm"):
        ServerProcess(command, tmp_path / "log")
    assert time.monotonic() - began < 12
    after = {process.pid for process in psutil.Process().children(recursive=True)}
    assert after <= before
