"""A log is kept up to its size, and says what is not in it."""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_llmdeploy.serving import supervisor
from pytest_llmdeploy.serving.supervisor import Log
from tests.serving.processes import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "server.log"
    found.touch()
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of 10,000 bytes: the first 2,000, the last 4,000."""
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10_000)
    monkeypatch.setattr(supervisor, "_FIRST_BYTES", 2_000)
    monkeypatch.setattr(supervisor, "_LAST_BYTES", 4_000)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """As a disk on which a file can have no more than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines(first: int, last: int) -> bytes:
    """So many lines of 100 bytes, each with its number."""
    return b"".join(b"%099d\n" % number for number in range(first, last))


@pytest.mark.usefixtures("small")
def test_a_log_that_fits_is_whole(path: Path) -> None:
    """Nothing is cut before there is too much."""
    Log(path).write(lines(0, 100))
    assert path.read_bytes() == lines(0, 100)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [101, 250, 1000])
def test_the_middle_of_a_long_log_is_cut(path: Path, count: int) -> None:
    """The first and the last part stay, whole lines, and one line says how much is left out."""
    log = Log(path)
    for number in range(count):
        log.write(lines(number, number + 1))
        assert path.stat().st_size <= 10_000
    text = path.read_bytes()
    found = re.search(rb"^\[([\d,]+) bytes of the log are left out here\]\n", text, re.MULTILINE)
    assert found is not None
    left_out = int(found[1].replace(b",", b""))
    first, last = text[: found.start()], text[found.end() :]
    assert first == lines(0, 20)
    assert last == lines(count - len(last) // 100, count)
    assert len(last) >= 3_900
    assert len(first) + left_out + len(last) == count * 100


def test_what_a_full_disk_did_not_take_is_counted(path: Path) -> None:
    """It is said as soon as there is room again, and what comes then is kept."""
    log = Log(path)
    log.write(b"before\n")
    with room_for(10):
        log.write(b"0123456789\n")
        log.write(b"lost as well\n")
    log.write(b"after\n")
    note = b"\n[21 bytes of the log could not be written here]\n"
    assert path.read_bytes() == b"before\n012" + note + b"after\n"


@pytest.mark.usefixtures("small")
def test_the_middle_is_cut_on_a_full_disk_too(path: Path) -> None:
    """Cutting needs no room."""
    log = Log(path)
    log.write(lines(0, 100))
    with room_for(10_100):
        log.write(lines(100, 101))
        assert path.stat().st_size < 7_000
    assert path.read_bytes().endswith(lines(100, 101))


def test_who_reads_the_log_of_a_death_waits_for_what_is_on_its_way(path: Path) -> None:
    """What is in the pipe by then is in the file afterwards."""
    log = Log(path)
    source, server = os.pipe()
    os.write(server, b"the cause\n")
    waiting = threading.Thread(target=log.drain, args=[source])
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    pump = threading.Thread(target=log.pump, args=[source])
    pump.start()
    waiting.join()
    assert path.read_bytes() == b"the cause\n"
    os.close(server)
    pump.join()
    log.drain(source)
    os.close(source)


def test_a_secret_is_not_written_in_two_parts(path: Path) -> None:
    """The rest of a line is waited for; one without an end is written when nothing more comes."""
    log = Log(path, lambda text: text.replace(b"planted", b"***"))
    source, server = os.pipe()
    pump = threading.Thread(target=log.pump, args=[source])
    pump.start()
    for part in (b"a plan", b"ted one\n50 %\r", b"the ", b"planted end"):
        os.write(server, part)
    log.drain(source)
    assert path.read_bytes() == b"a *** one\n50 %\rthe *** end"
    os.write(server, b"waiting: planted")
    eventually(lambda: path.read_bytes().endswith(b"waiting: ***"))
    os.close(server)
    pump.join()
    os.close(source)
