"""Records of what was launched, so that somebody can end it when nobody is left who should.

Each is a file that a launch writes and its end removes. One whose run has gone was left behind.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmdeploy.serving import supervisor
from pytest_llmdeploy.serving.command import LaunchError
from pytest_llmdeploy.serving.listening import named

SCRATCH_PREFIX = "llmd-"
# The same for every run of a user, whatever TMPDIR each has: they share the locks.
_TEMPORARY = Path("/tmp")  # noqa: S108 - the folder below is checked
_ONLY_OURS = 0o700
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Swept:
    """What was ended and removed of a launch, and what is left of it."""

    spec: str = ""
    owner: int = 0
    ended: Sequence[str] = ()
    files: int = 0
    shared: Sequence[str] = ()
    left: Sequence[str] = ()

    def __str__(self) -> str:
        counts = (len(self.ended), "process"), (self.files, "temporary file")
        parts = [_counted(*pair) for pair in (*counts, (len(self.shared), "shared segment"))]
        done = ", ".join(filter(None, parts)) or "its record"
        left = f"; left: {', '.join(self.left)}" if self.left else ""
        return f"swept what the run of pid {self.owner} left of {self.spec}: {done}{left}"


def runtime_folder() -> Path:
    """Where this user's runs know of each other.

    Raises:
        LaunchError: when somebody else could write there.
    """
    base, name = _TEMPORARY, f"llmdeploy-{os.getuid()}"
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        # After `su`, it is still that of whoever logged in.
        with suppress(OSError):
            if Path(given).stat().st_uid == os.getuid():
                base, name = Path(given), "llmdeploy"
    folder = (base if base.is_dir() else Path(tempfile.gettempdir())) / name
    with suppress(FileExistsError):
        folder.mkdir(mode=_ONLY_OURS)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or stat.S_IMODE(found.st_mode) & ~_ONLY_OURS:
        msg = f"{folder} must be a folder that is yours alone (mode 0700): remove what is there"
        raise LaunchError(msg)
    return folder


def begin(folder: Path, spec: str, devices: Sequence[str], scratch: Path) -> Path:
    """The record of a launch, before anything runs; its supervisor adds the processes."""
    own = supervisor.stat(os.getpid())
    boot, namespace = _here()
    facts = {
        "spec": spec,
        "boot": boot,
        "namespace": namespace,
        "owner": [os.getpid(), own.started if own else 0],
        "devices": list(devices),
        "scratch": str(scratch),
        "descendants": [],
        "shared": {},
    }
    path = folder / f"{scratch.name}.json"
    supervisor.write_whole(path, facts)
    return path


def sweep(path: Path) -> Swept:
    """Ends and removes whatever the launch of a record has left; nothing where there is none."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return Swept()
    names, left = _end(facts) if facts["boot"] == _here()[0] else ([], [])
    done: dict[str, Any] = {"files": 0, "shared": [], "left": []}
    if Path(facts["scratch"]).name.startswith(SCRATCH_PREFIX):
        done = supervisor.remove_left(facts)
    path.unlink(missing_ok=True)
    path.with_suffix(".new").unlink(missing_ok=True)
    done["left"] = [*left, *done["left"]]
    return Swept(facts["spec"], facts["owner"][0], names, **done)


def sweep_abandoned() -> Iterator[Swept]:
    """Sweeps after every run that has gone without doing so.

    Raises:
        LaunchError, OSError: as `runtime_folder`.
    """
    for path in sorted(runtime_folder().glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if _is_abandoned(json.loads(path.read_text())):
                yield sweep(path)


def _is_abandoned(facts: dict[str, Any]) -> bool:
    boot, namespace = _here()
    if facts["boot"] != boot:
        return True
    # A container's pids say nothing outside of it.
    return facts["namespace"] == namespace and not _lives(*facts["owner"])


def _here() -> tuple[str, str]:
    """This boot of the machine, and this namespace of pids."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return boot, namespace


def _lives(pid: int, started: int) -> bool:
    found = supervisor.stat(pid)
    return found is not None and found.started == started


def _end(facts: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Kills the processes of a record; the names of all, and of those that are there still."""
    roles = (facts[role] for role in ("supervisor", "server") if role in facts)
    targets: dict[int, int] = dict([*roles, *facts["descendants"]])
    names: dict[int, str] = {}
    deadline = time.monotonic() + _KILL_SECONDS
    while living := _family(targets):
        targets |= living
        names |= {pid: named(pid) for pid in living if pid not in names}
        if time.monotonic() > deadline:
            break
        for pid in supervisor.without_trackers(set(living)):
            _kill(pid, living[pid])
        time.sleep(_POLL_SECONDS)
    return list(names.values()), [names[pid] for pid in living]


def _family(recorded: dict[int, int]) -> dict[int, int]:
    """Of the recorded processes those that live, with their descendants and their sessions: one
    that lives keeps its session from being anybody else's.
    """
    found = supervisor.processes()
    own = found.pop(os.getpid(), None)
    sure = {
        pid for pid, started in recorded.items() if pid in found and found[pid].started == started
    }
    sessions = {found[pid].session for pid in sure} - {own.session if own else 0}
    members = {pid for pid, it in found.items() if it.session in sessions}
    family = supervisor.below(sure | members, found)
    return {pid: found[pid].started for pid in family}


def _kill(pid: int, started: int) -> None:
    """Kills that very process: between the look and the signal, its pid may become another's."""
    with suppress(ProcessLookupError, PermissionError):
        process = os.pidfd_open(pid)
        try:
            if _lives(pid, started):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count != 1 else ''}" if count else ""
