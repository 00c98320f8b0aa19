"""What a launch left behind is swept by whoever comes next, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmdeploy.serving import LaunchError, launches, supervisor
from pytest_llmdeploy.serving.launches import runtime_folder, sweep, sweep_abandoned
from tests.serving.processes import eventually, is_alive
from tests.serving.survivors import Holder


def test_a_killed_supervisor_is_swept_after_at_once(holder: Holder) -> None:
    """Whoever launched it notices, and ends what the supervisor can't."""
    os.kill(holder.supervisor, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, holder.pids)))
    eventually(lambda: not holder.path.exists())
    assert not holder.scratch.exists()
    assert holder.process.poll() is None


def test_a_killed_run_is_swept_after_by_its_supervisor(holder: Holder) -> None:
    """It takes the files and the record along, and the next run finds nothing."""
    (holder.scratch / "socket").touch()
    holder.process.kill()
    holder.process.wait()
    eventually(lambda: not is_alive(holder.supervisor))
    assert not any(map(is_alive, holder.pids))
    assert not holder.scratch.exists()
    assert not holder.path.exists()
    assert list(sweep_abandoned()) == []


def test_when_both_are_killed_the_next_run_sweeps(holder: Holder) -> None:
    """It says whose processes it has ended, and what it has removed."""
    (holder.scratch / "socket").touch()
    assert list(sweep_abandoned()) == []
    holder.kill_with_its_supervisor()
    server, *orphans = holder.pids
    eventually(lambda: not is_alive(server))
    assert all(map(is_alive, orphans))
    (swept,) = sweep_abandoned()
    assert not any(map(is_alive, orphans))
    assert not holder.scratch.exists()
    assert str(swept) == (
        f"swept what the run of pid {holder.process.pid} left of s: 2 processes, 1 temporary file"
    )
    assert list(sweep_abandoned()) == []


def test_descendants_that_are_not_in_the_record_are_swept(holder: Holder) -> None:
    """Between two looks a process may have started another one."""
    holder.kill_with_its_supervisor()
    _, child, grandchild = holder.record["descendants"]
    holder.path.write_text(json.dumps({**holder.record, "descendants": [child]}))
    assert len(sweep(holder.path).ended) == 2
    assert not is_alive(grandchild[0])


def test_orphans_that_are_not_in_the_record_are_swept() -> None:
    """Whoever is in the session of a process that is: nobody else can be."""
    script = "import subprocess as s, time; s.Popen(['sleep', '60']); s.Popen(['sleep', '60'])"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{script}; time.sleep(60)"], start_new_session=True
    )
    known = psutil.Process(parent.pid)
    eventually(lambda: len(known.children()) == 2)
    first, second = known.children()
    parent.kill()
    parent.wait()
    found = supervisor.stat(first.pid)
    assert found is not None
    _, left = launches._end({"descendants": [[first.pid, found.started]]})
    assert left == []
    assert not any(map(is_alive, (first.pid, second.pid)))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any launch."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def record(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """The record of a launch of a process that has gone, with the changes."""
    scratch = tmp_path / "llmd-scratch"
    scratch.mkdir(exist_ok=True)
    path = launches.begin(folder, "s", [], scratch)
    facts = {**json.loads(path.read_text()), "owner": [os.getpid(), 1], **changes}
    path.write_text(json.dumps(facts))
    return path


def test_a_pid_alone_ends_nothing(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """A pid that another process has by now is not that of the record."""
    found = supervisor.stat(bystander.pid)
    assert found is not None
    path = record(runtime_folder(), tmp_path, descendants=[[bystander.pid, found.started - 1]])
    (swept,) = sweep_abandoned()
    assert (list(swept.ended), path.exists(), bystander.poll()) == ([], False, None)
    launches._kill(bystander.pid, found.started - 1)
    assert is_alive(bystander.pid)


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [({}, False), ({"namespace": "pid:[1]"}, True), ({"boot": "before"}, False)],
    ids=["the same machine", "another container", "before the boot"],
)
def test_whose_records_are_swept(
    tmp_path: Path,
    bystander: subprocess.Popen[bytes],
    changes: dict[str, Any],
    is_kept: bool,
) -> None:
    """Pids of another namespace say nothing here; of before the boot, only files are left."""
    found = supervisor.stat(bystander.pid)
    assert found is not None
    pair = [bystander.pid, found.started]
    path = record(runtime_folder(), tmp_path, descendants=[pair], **changes)
    ended = [name for swept in sweep_abandoned() for name in swept.ended]
    assert (path.exists(), (tmp_path / "llmd-scratch").exists()) == (is_kept, is_kept)
    assert bool(ended) == (not changes)
    assert is_alive(bystander.pid) == bool(changes)
    path.unlink(missing_ok=True)


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """Its record says who it is: pid and start."""
    scratch = tmp_path / "llmd-scratch"
    scratch.mkdir()
    path = launches.begin(runtime_folder(), "s", [], scratch)
    assert list(sweep_abandoned()) == []
    assert scratch.exists()
    path.unlink()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"boot": 1}'])
def test_what_is_no_record_is_left_alone(text: str) -> None:
    """A file that can't be read keeps nobody from a launch."""
    path = runtime_folder() / "garbage.json"
    path.write_text(text)
    list(sweep_abandoned())
    path.unlink(missing_ok=True)


def test_no_other_folder_is_removed(tmp_path: Path) -> None:
    """Of a record that names something else than a launch's own folder, nothing is."""
    other = tmp_path / "home"
    other.mkdir()
    path = record(runtime_folder(), tmp_path, scratch=str(other))
    list(sweep_abandoned())
    assert (other.exists(), path.exists()) == (True, False)


def test_the_runtime_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's folder, or one that others can open, is not written to."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder() == tmp_path / "llmdeploy"
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
    runtime_folder().chmod(0o750)
    with pytest.raises(LaunchError, match="must be a folder that is yours alone"):
        runtime_folder()
    (tmp_path / "llmdeploy").rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "llmdeploy").symlink_to("elsewhere")
    with pytest.raises(LaunchError, match="must be a folder that is yours alone"):
        runtime_folder()


@pytest.mark.parametrize("given", ["", "/nonexistent"])
def test_without_a_runtime_folder_of_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """One below /tmp, by the user: the same for every run, whatever TMPDIR it has."""
    monkeypatch.setattr(launches, "_TEMPORARY", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", given)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    assert runtime_folder() == tmp_path / f"llmdeploy-{os.getuid()}"
