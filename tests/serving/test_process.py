"""Nothing outlives its server, whoever dies first."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmdeploy.serving import Command, supervisor
from pytest_llmdeploy.serving import process as module
from pytest_llmdeploy.serving.listening import addresses, is_open
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
    monkeypatch.setattr(module, "TERM_SECONDS", 0.2)
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
    # By SIGKILL, and the report says whom.
    assert len(stopped.removed["processes"]) == 3
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
process.GRACE_SECONDS, process.TERM_SECONDS = 0.3, 0.2
server = process.ServerProcess(python(FAMILY), Path(sys.argv[1]))
eventually(lambda: len(family(server.log_text())) == 3)
print(json.dumps([server._supervisor.pid, str(server._scratch), *family(server.log_text())]))
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
    eventually(lambda: server.returncode == -signal.SIGKILL)
    assert not is_alive(server.pid)


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


def test_the_log_can_be_read_all_along(start: Start) -> None:
    """Both streams, while it runs and after its end, whatever bytes are in them."""
    server = start(
        "import sys, time\n"
        "sys.stdout.buffer.write(b'out \\xff\\n'); sys.stdout.flush()\n"
        "print('err', file=sys.stderr, flush=True); time.sleep(60)"
    )
    eventually(lambda: server.log_text() == "out \ufffd\nerr\n")
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


def test_what_was_said_last_is_there_when_the_end_is_seen(start: Start) -> None:
    """The cause of a death is in the log by the time that the exit code is known."""
    server = start("print('x' * 1_000_000); print('the cause'); raise SystemExit(3)")
    eventually(lambda: server.returncode is not None)
    assert server.last_line() == "the cause"


def test_an_end_is_seen_before_the_sweep(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that do not end keep nobody from knowing."""
    monkeypatch.setattr(module, "TERM_SECONDS", 30.0)
    server, pids = with_family(start)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: server.returncode == -signal.SIGKILL)
    assert any(map(is_alive, pids[1:]))
    server._supervisor.send_signal(signal.SIGUSR1)
    eventually(lambda: not any(map(is_alive, pids)))


def test_an_interrupt_of_the_stop_ends_the_patience_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, or a time-out's signal, is raised when all has gone, and that soon."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 30.0)
    server, pids = with_family(start, "stubborn")

    def interrupt() -> None:
        eventually(lambda: "SIGTERM" in server.log_text())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not any(map(is_alive, pids))
    assert server.stop().seconds < 10
    assert not server._scratch.exists()


def test_a_supervisor_that_hangs_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it is killed, and what it should have ended is swept."""
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.1)
    server, pids = with_family(start)
    eventually(lambda: set(pids) <= recorded(server))
    server._supervisor.send_signal(signal.SIGSTOP)
    stopped = server.stop()
    assert not any(map(is_alive, pids))
    assert not any(stopped.left.values())
    # The server itself went with its supervisor.
    assert len(stopped.removed["processes"]) >= 2


def test_a_full_disk_neither_ends_nor_blocks_a_server(start: Start, tmp_path: Path) -> None:
    """Of its log, what did not fit is counted; it is stopped and swept as ever."""
    server = start(
        "import os, sys, time\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "print('x' * 1_000_000, flush=True); os.rename(sys.argv[1], sys.argv[2])\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "print('again', flush=True); time.sleep(60)",
        str(tmp_path / "go"),
        str(tmp_path / "gone"),
    )
    keeper = psutil.Process(server._supervisor.pid)
    _, hard = keeper.rlimit(psutil.RLIMIT_FSIZE)
    keeper.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    (tmp_path / "go").touch()
    eventually((tmp_path / "gone").exists)
    assert (server.returncode, server.log_text()) == (None, "")
    keeper.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    (tmp_path / "go").touch()
    eventually(lambda: server.last_line() == "again")
    text = server.log_text()
    found = re.match(r"\n\[([\d,]+) bytes of the log could not be written here\]\n", text)
    assert found is not None
    kept = text[found.end() :].removesuffix("again\n")
    assert int(found[1].replace(",", "")) + len(kept) == 1_000_001
    keeper.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    assert not any(server.stop().left.values())
    assert server.returncode == -signal.SIGTERM


SHARING = """
import mmap, os, sys, time
kept = []
for name in sys.argv[1:]:
    file = open(f"/dev/shm/{name}", "w+b")
    file.truncate(4096)
    kept.append(mmap.mmap(file.fileno(), 4096))
print("mapped", flush=True)
time.sleep(60)
"""


@pytest.fixture
def segments() -> Iterator[list[Path]]:
    """Names in shared memory that nobody has."""
    found = [supervisor.SHARED_MEMORY / f"llmd-test-{os.getpid()}-{number}" for number in range(3)]
    yield found
    for path in found:
        path.unlink(missing_ok=True)


def test_shared_memory_is_removed_when_it_is_the_servers(
    start: Start, segments: list[Path]
) -> None:
    """Not what somebody else made meanwhile, nor what somebody else has mapped."""
    own, shared, foreign = segments
    server = start(SHARING, own.name, shared.name)
    foreign.touch()
    eventually(lambda: server.last_line() == "mapped")
    eventually(
        lambda: {own.name, shared.name} <= {*json.loads(server._record.read_text())["shared"]}
    )
    with shared.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        server._supervisor.send_signal(signal.SIGTERM)
        stopped = server.stop()
    assert [path.exists() for path in segments] == [False, True, True]
    assert list(stopped.shared_memory) == [shared.name]
    assert stopped.removed["shared memory"] == [own.name]


def test_shared_memory_of_a_server_that_dies_at_once(start: Start, segments: list[Path]) -> None:
    """Its child has it for less than a look; it is removed all the same."""
    own = segments[0]
    server = start(
        "import os, subprocess, sys\n"
        "argv = [sys.executable, '-c', sys.argv[1], sys.argv[2]]\n"
        "child = subprocess.Popen(argv, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); os._exit(0)",
        SHARING,
        own.name,
    )
    eventually(lambda: server.returncode == 0)
    assert server.stop().removed["shared memory"] == [own.name]
    assert not own.exists()


MAKING_MORE = """
import mmap, sys, time
from pathlib import Path
files = []
for number in range(100_000):
    path = Path(f"{sys.argv[1]}-{number}")
    file = path.open("w+b")
    file.truncate(4096)
    files.append((file, mmap.mmap(file.fileno(), 4096)))
    print("mapped", flush=True)
    time.sleep(0.001)
"""


def test_what_is_made_while_it_is_ended_goes_too(start: Start, segments: list[Path]) -> None:
    """Between the last look and the signal, nothing new is shared."""
    prefix = segments[0]
    server = start(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])",
        MAKING_MORE,
        str(prefix),
    )
    eventually(lambda: server.last_line() == "mapped")
    stopped = server.stop()
    left = list(supervisor.SHARED_MEMORY.glob(f"{prefix.name}-*"))
    for path in left:
        path.unlink()
    # The name is there a moment before it is mapped.
    assert len(left) <= 1
    assert len(stopped.removed["shared memory"]) > 1


def test_a_stopped_server_ends_by_itself(start: Start) -> None:
    """It goes on for that: what is stopped can't hear a SIGTERM."""
    server = start(
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(5))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    eventually(lambda: server.last_line() == "ready")
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert server.returncode == 5


def test_the_resource_tracker_ends_last(start: Start, tmp_path: Path) -> None:
    """It ignores SIGTERM, and ends by itself when all whom it serves have gone."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, signal, time\n"
        "def stubborn():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    lock = context.Lock(); context.Process(target=stubborn).start(); time.sleep(60)\n"
    )
    server = start("import runpy, sys; runpy.run_path(sys.argv[1], {}, '__main__')", str(program))
    eventually(lambda: server.last_line() == "ready")
    assert len(server.stop().removed["processes"]) == 1


def test_an_address_that_still_answers_is_left(start: Start) -> None:
    """Where a process of the server listened, nobody may listen afterwards."""
    server = start(
        "import socket, time; own = socket.create_server(('127.0.0.1', 0))\n"
        "print(own.getsockname()[1], flush=True); time.sleep(60)"
    )
    eventually(lambda: server.last_line().isdigit())
    assert addresses(server.tree()) == [("127.0.0.1", int(server.last_line()))]
    assert list(server.stop().sockets) == []
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        assert is_open(port, host)
    assert not is_open(port, host)


def recorded(server: ServerProcess) -> set[int]:
    """The descendants in the record of a launch."""
    return {pid for pid, _ in json.loads(server._record.read_text())["descendants"]}
