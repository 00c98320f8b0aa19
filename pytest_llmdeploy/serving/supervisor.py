"""One small process per server: it starts the server, keeps its log, and sweeps up after it.

Run as a script with nothing but the standard library, so that it costs no time and no memory:

    supervisor.py LIFELINE REPORT RECORD LOG GRACE TERM SECRETS -- ARGV...

It holds the read end of a pipe (LIFELINE) whose other end only pytest has. When pytest ends, in
whatever way, the pipe closes, and every process that descends from the server is ended: SIGTERM to
the server, GRACE seconds, SIGTERM to all that is left, TERM seconds, SIGKILL. SIGUSR1 means that
nobody has that patience any more.

REPORT is a pipe to pytest, with a JSON object on each line: that the server runs, its exit code,
what was killed and removed. RECORD is a file that says what has to be ended if this process can't
do it. LOG is the server's log; SECRETS names variables, by commas, whose values it must not hold.
The two files may fail, on a full disk for instance; nothing waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of a log that is longer, the first part and the last part are kept.
LOG_BYTES = 50 * 1024**2
_FIRST_BYTES = LOG_BYTES // 5
_LAST_BYTES = 2 * LOG_BYTES // 5
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the system keeps it

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.5
# A name is there before anybody has it mapped: so often it is looked for who has.
_SHARED_LOOKS = 20
_DRAIN_SECONDS = 1.0
_TRACKER = b"multiprocessing.resource_tracker"
_READ_BYTES = 64 * 1024
# So long the rest of a line is waited for.
_HELD_SECONDS = 0.2
_asked: set[int] = set()


def main(argv: list[str]) -> int:
    lifeline, report, record_path, log, grace, term, secrets, _, *command = argv
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: _asked.add(number))
    record, kept = Record(Path(record_path)), Log(Path(log), _without_secrets(secrets.split(",")))
    output, server_output = os.pipe()
    try:
        # A killed supervisor takes the server with it; the rest falls to who reads the record.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=server_output,
            stderr=server_output,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - one thread
        )
    except OSError as error:
        _tell(report, error=str(error), **record.close())
        return 1
    os.close(server_output)
    # A thread of its own: neither a slow disk may keep the sweep from happening, nor the sweep
    # keep a server that has much to say from ending.
    pump = threading.Thread(target=kept.pump, args=[output], daemon=True)
    pump.start()
    record.add("server", server.pid)
    _tell(report, pid=server.pid)
    ended = _watch(int(lifeline), server.pid, record)
    # What was shared since the last look is known only while somebody has it, here or in a server
    # that has just died by itself.
    record.look()
    if ended is None:
        ended = _end_politely(server.pid, float(grace), record)
    server.returncode = ended
    # Whoever learns of a death reads the log for its cause.
    kept.drain(output)
    _tell(report, returncode=ended)
    killed = _sweep(float(term), record)
    pump.join(_DRAIN_SECONDS)
    _tell(report, killed=killed, **record.close())
    return 0


def _without_secrets(names: Sequence[str]) -> Callable[[bytes], bytes]:
    """Takes the values of these variables out of a text, and what else a secret is."""
    # This script is no part of a package: it has what stands beside it by its path.
    module = runpy.run_path(str(Path(__file__).parents[1] / "secrets.py"))
    for name in names:
        module["keep"](name)

    def clean(text: bytes) -> bytes:
        shown: str = module["redact"](text.decode("utf-8", "surrogateescape"))
        return shown.encode("utf-8", "surrogateescape")

    return clean


def _tell(report: str, **facts: Any) -> None:
    # Where pytest has gone, nobody listens.
    with contextlib.suppress(OSError):
        os.write(int(report), json.dumps(facts).encode() + b"\n")


def _watch(lifeline: int, server: int, record: Record) -> int | None:
    """Waits for the server's end and returns its code, or None when it is to be stopped."""
    pytest, looked = os.getppid(), 0.0
    while not _asked:
        readable, _, _ = select.select([lifeline], [], [], _POLL_SECONDS)
        if (code := _reap(server)) is not None:
            return code
        # A process that pytest forked may hold the other end, too.
        if (readable and not os.read(lifeline, 1)) or os.getppid() != pytest:
            return None
        if time.monotonic() - looked > _LOOK_SECONDS:
            record.look()
            looked = time.monotonic()
    return None


def _end_politely(server: int, grace: float, record: Record) -> int:
    for pid in _descendants():
        # What is stopped can't end by itself, nor can a server that waits for it.
        _signal(pid, signal.SIGCONT)
    _signal(server, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and signal.SIGUSR1 not in _asked:
        if (code := _reap(server)) is not None:
            return code
        # A server that starts goes on with it for a while.
        record.look()
        time.sleep(_POLL_SECONDS)
    return -signal.SIGKILL


def _sweep(term: float, record: Record) -> list[str]:
    """Ends every descendant, and waits until there is none; those that had to be killed."""
    started, killed = time.monotonic(), dict[int, str]()
    while pids := _descendants():
        late = time.monotonic() - started > term or signal.SIGUSR1 in _asked
        for pid in pids:
            # What it shares is known only while it has it: it holds still for the look.
            _signal(pid, signal.SIGSTOP)
        record.look()
        for pid in without_trackers(pids) if late else pids:
            if late:
                killed.setdefault(pid, f"{_name(pid)} (pid {pid})")
            _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        for pid in pids:
            _signal(pid, signal.SIGCONT)
        _reap(0)
        time.sleep(_POLL_SECONDS)
    return list(killed.values())


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


def _descendants() -> set[int]:
    """The pids below this process. As a subreaper it inherits whatever loses its parent."""
    own = os.getpid()
    return below({own}, processes()) - {own}


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Log:
    """A server's output on its way to a file, the first and the last part of it, as `clean` leaves
    it. Whatever the disk does not take is counted, and said when it takes something again.
    """

    def __init__(self, path: Path, clean: Callable[[bytes], bytes] = bytes) -> None:
        self.size = self.first = self.cut = self.lost = self._note = 0
        self.file = os.open(path, os.O_RDWR)
        self.clean, self._held = clean, b""
        self._busy, self._ended = threading.Lock(), False

    def pump(self, source: int) -> None:
        """Copies until the end of `source`."""
        while not self._ended:
            patience = _HELD_SECONDS if self._held else None
            readable, _, _ = select.select([source], [], [], patience)
            with self._busy:
                data = os.read(source, _READ_BYTES) if readable else b""
                self._take(data)
                self._ended = bool(readable) and not data

    def _take(self, data: bytes) -> None:
        """Writes what is whole: a part of a line may end amid a secret. It waits for more, but not
        when nothing more comes, or too much.
        """
        text = self._held + data
        end = 1 + max(text.rfind(b"\n"), text.rfind(b"\r"))
        if not data or len(text) - end > _READ_BYTES:
            end = len(text)
        self._held = text[end:]
        if end:
            self.write(self.clean(text[:end]))

    def drain(self, source: int) -> None:
        """Waits, though not for long, until everything that was said by now is in the file."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline:
            if self._busy.acquire(timeout=_DRAIN_SECONDS):
                is_empty = self._ended or not select.select([source], [], [], 0)[0]
                if is_empty:
                    self._take(b"")
                self._busy.release()
                if is_empty:
                    return
            time.sleep(_POLL_SECONDS / 10)

    def write(self, data: bytes) -> None:
        if self.lost:
            note = f"\n[{self.lost:,} bytes of the log could not be written here]\n".encode()
            if self._put(note, self.size) < len(note):
                self.lost += len(data)
                return
            self.size += len(note)
        written = self._put(data, self.size)
        self.size += written
        self.lost = len(data) - written
        if self.size > LOG_BYTES:
            self._cut()

    def _put(self, data: bytes, offset: int) -> int:
        """How much of it was written."""
        written = 0
        with contextlib.suppress(OSError):
            while written < len(data):
                written += os.pwrite(self.file, data[written:], offset + written)
        return written

    def _cut(self) -> None:
        """Takes the middle out of the file in place: there may be no room for another one."""
        with contextlib.suppress(OSError):
            if not self.first:
                self.first = os.pread(self.file, _FIRST_BYTES, 0).rfind(b"\n") + 1
            last = os.pread(self.file, _LAST_BYTES, self.size - _LAST_BYTES)
            last = last[last.find(b"\n") + 1 :]
            self.cut += self.size - self.first - self._note - len(last)
            note = f"[{self.cut:,} bytes of the log are left out here]\n".encode()
            self._note = len(note)
            kept = self._put(note + last, self.first)
            self.lost += len(note + last) - kept
            self.size = self.first + kept
            os.ftruncate(self.file, self.size)


class Record:
    """What must be ended and removed after the server, in a file for whoever has to do it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = json.loads(path.read_text())
        self._seen: set[int] = set()
        self._shared = self._known_shared = set(shared_names())
        self._looks = 0
        self.add("supervisor", os.getpid())

    def add(self, role: str, pid: int) -> None:
        found = stat(pid)
        self.facts[role] = [pid, found.started if found else 0]
        self._write()

    def look(self) -> None:
        """Adds what has appeared since the last look; forgets the processes that have gone."""
        pids = set(_pids())
        fresh = {pid: found for pid in pids - self._seen if (found := stat(pid))}
        self._seen = pids
        own = {os.getpid(), *(pid for pid, _ in self.facts["descendants"])}
        descendants = [pair for pair in self.facts["descendants"] if pair[0] in pids]
        descendants += [[pid, fresh[pid].started] for pid in sorted(below(own, fresh) - own)]
        shared = {**self.facts["shared"], **self._new_shared(pid for pid, _ in descendants)}
        if (descendants, shared) != (self.facts["descendants"], self.facts["shared"]):
            self.facts |= {"descendants": descendants, "shared": shared}
            self._write()

    def close(self) -> dict[str, Any]:
        """Removes what the server left, and the record with it; says what that was."""
        done = remove_left(self.facts)
        self.path.unlink(missing_ok=True)
        return done

    def _new_shared(self, pids: Iterable[int]) -> dict[str, int]:
        """Shared memory that was not there before the launch, and that one of `pids` has mapped."""
        names = set(shared_names())
        if names != self._shared:
            self._shared, self._looks = names, _SHARED_LOOKS
        if not self._looks:
            return {}
        self._looks -= 1
        mapped = {name: inode for pid in pids for name, inode in mapped_shared(pid)}
        return {name: mapped[name] for name in names - self._known_shared if name in mapped}

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            write_whole(self.path, self.facts)


def remove_left(facts: dict[str, Any]) -> dict[str, Any]:
    """Removes the temporary files and the shared memory of a server whose processes have gone:
    `files` and `shared` are what was removed, `left` what could not be.
    """
    scratch = Path(facts["scratch"])
    files = sum(len(folders) + len(names) for _, folders, names in os.walk(scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    shared = [name for name, inode in facts["shared"].items() if _inode(name) == inode]
    # What a server shares with somebody who lives on is not ours alone.
    used = {name for pid in _pids() for name, _ in mapped_shared(pid)} if shared else set()
    removed = [name for name in shared if name not in used and _remove_shared(name)]
    return {"files": files, "shared": removed, "left": sorted({*shared} - {*removed})}


def write_whole(path: Path, facts: dict[str, Any]) -> None:
    """Nobody reads a file that is half written."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(facts))
    fresh.replace(path)


class Stat(NamedTuple):
    """Of a process: its parent, its session, and when it was started, in ticks since the boot. With
    its pid, the last tells it from every other one until the next boot.
    """

    parent: int
    session: int
    started: int


def stat(pid: int) -> Stat | None:
    """A process that lives; a zombie does not."""
    try:
        # The name in the second field may hold anything, blanks and brackets included.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else Stat(int(fields[1]), int(fields[3]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def processes() -> dict[int, Stat]:
    """Those that live."""
    return {pid: found for pid in _pids() if (found := stat(pid))}


def below(roots: set[int], among: dict[int, Stat]) -> set[int]:
    """The roots and all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid, its in among.items():
        children.setdefault(its.parent, []).append(pid)
    found, queue = set(roots), list(roots)
    while queue:
        fresh = set(children.get(queue.pop(), ())) - found
        found |= fresh
        queue += fresh
    return found


def without_trackers(pids: set[int]) -> set[int]:
    """Whom to kill first. Python's resource tracker removes what the dead have shared, and then
    ends by itself; it is killed when it is the last one.
    """
    return {pid for pid in pids if _TRACKER not in _command_line(pid)} or pids


def shared_names() -> list[str]:
    """What is in shared memory now."""
    try:
        return os.listdir(SHARED_MEMORY)  # noqa: PTH208 - names
    except OSError:
        return []


def mapped_shared(pid: int) -> Iterator[tuple[str, int]]:
    """The shared memory that a process has mapped, by name, with its inode."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/maps").open(errors="replace") as lines:
        for line in lines:
            _, found, name = line.rstrip("\n").partition(f" {SHARED_MEMORY}/")
            if found and not name.endswith(" (deleted)"):
                yield name, int(line.split()[4])


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "a process"


def _inode(name: str) -> int:
    try:
        return (SHARED_MEMORY / name).lstat().st_ino
    except OSError:
        return 0


def _remove_shared(name: str) -> bool:
    with contextlib.suppress(OSError):
        (SHARED_MEMORY / name).unlink()
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
