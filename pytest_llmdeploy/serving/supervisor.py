"""One small process per server: it starts the server, and sweeps up after it.

Run as a script with nothing but the standard library, so that it costs no time and no memory:

    supervisor.py LIFELINE STATUS SCRATCH GRACE -- ARGV...

It holds the read end of a pipe (LIFELINE) whose other end only pytest has. When pytest ends, in
whatever way, the pipe closes, and every process that descends from the server is ended: SIGTERM,
GRACE seconds, SIGKILL. STATUS is a JSON file that says what is running and how it ended; SCRATCH
is the server's TMPDIR, removed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1
_TERM_SECONDS = 2.0
_stop_requested = False


def main(argv: list[str]) -> int:
    lifeline, status, scratch, grace, _, *command = argv
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _request_stop)
    # A killed supervisor takes the server with it; the rest falls to whoever started this one.
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - one thread
    )
    record = {"pid": server.pid, "supervisor": os.getpid(), "returncode": None}
    _write(Path(status), record)
    ended = _watch(int(lifeline), server.pid)
    if ended is None:
        ended = _end_politely(server.pid, float(grace))
    _sweep()
    server.returncode = ended
    _write(Path(status), {**record, "returncode": ended})
    shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _request_stop(_number: int, _frame: object) -> None:
    global _stop_requested  # noqa: PLW0603 - a signal handler has no other way
    _stop_requested = True


def _watch(lifeline: int, server: int) -> int | None:
    """Waits for the server's end and returns its code, or None when it is to be stopped."""
    while not _stop_requested:
        readable, _, _ = select.select([lifeline], [], [], _POLL_SECONDS)
        if (code := _reap(server)) is not None:
            return code
        if readable and not os.read(lifeline, 1):
            return None
    return None


def _end_politely(server: int, grace: float) -> int:
    _signal(server, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        if (code := _reap(server)) is not None:
            return code
        time.sleep(_POLL_SECONDS)
    return -signal.SIGKILL


def _sweep() -> None:
    """Ends every descendant, and waits until there is none."""
    started = time.monotonic()
    while pids := _descendants():
        late = time.monotonic() - started > _TERM_SECONDS
        for pid in pids:
            _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        _reap(0)
        time.sleep(_POLL_SECONDS)


def _reap(wanted: int) -> int | None:
    """Takes leave of every ended child; the exit code of `wanted` when it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == wanted:
            code = os.waitstatus_to_exitcode(status)


def _descendants() -> list[int]:
    """The pids below this process. As a subreaper it inherits whatever loses its parent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parent(entry: Path) -> int | None:
    try:
        # The name in the second field may hold anything, blanks and brackets included.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _write(path: Path, record: dict[str, int | None]) -> None:
    # A full disk must not keep the sweep from happening.
    with contextlib.suppress(OSError):
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
