"""However a run ends, nothing of its server is left: no process, no file, no record."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gate_runs import QUICK, own_checks, statuses
from tests.runs import Run, Runs
from tests.serving.processes import eventually, family, freeze, is_alive
from tests.specs import write_spec

INTERRUPTED = pytest.ExitCode.INTERRUPTED
# A fixture and a test of a user, who has a server by then.
OWN = """
import pytest, time
from pytest_llmdeploy import check

@pytest.fixture
def broken(server):
    raise RuntimeError("mine")

@check("Waits")
def waits(server, expect):
    open("waiting", "w").close()
    time.sleep(60)

@check("Crashes")
def crashes(broken, expect):
    expect(0).at_most(1)
"""


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    found = Runs()
    yield found
    found.close()


@dataclass(frozen=True)
class Launched:
    """A run that has launched a server, and all that must go with it."""

    run: Run
    pids: list[int]
    scratch: Path

    @property
    def left(self) -> list[Any]:
        scratch = [self.scratch] if self.scratch.exists() else []
        return [*filter(is_alive, self.pids), *scratch, *self.run.records]

    def has_ended(self, code: int, *, at_once: bool = True) -> None:
        """With that exit code, and with nothing left by then, or soon after."""
        assert self.run.wait() == code, self.run.output
        if not at_once:
            eventually(lambda: not self.left)
        assert self.left == []


def launched(runs: Runs, folder: Path, *arguments: str, **settings: Any) -> Launched:
    """A run whose server is up, with a child and a grandchild that ignore SIGTERM; it does not get
    ready, unless it `serves`.
    """
    (folder / "own.py").write_text(OWN)
    write_spec(folder / "s.yaml", checks=["own.py"], parallel=None)
    given = ["--deploy-spec=s.yaml", "--deploy-report=out.json", *arguments]
    run = runs.start(folder, *given, **settings)
    eventually(lambda: len(family(run.log)) == 3)
    eventually(
        lambda: any(
            {*family(run.log)} <= {pid for pid, _ in record["descendants"]}
            for record in run.records
        )
    )
    (record,) = run.records
    found = [record["supervisor"], *record["descendants"]]
    return Launched(run, [pid for pid, _ in found], Path(record["scratch"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_all(runs: Runs, tmp_path: Path, number: signal.Signals) -> None:
    """The report is there, and the terminal has its summary."""
    found = launched(runs, tmp_path)
    found.run.send(number)
    found.has_ended(INTERRUPTED)
    (entry,) = json.loads((tmp_path / "out.json").read_text())["specs"]
    assert entry["verdict"] == "UNDECIDED"
    assert "UNDECIDED: " in found.run.output
    assert "Traceback" not in found.run.output


@pytest.mark.parametrize("serves", [False, True], ids=["at the start", "while it serves"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "CI"])
def test_a_second_signal_does_not_skip_the_sweep(
    runs: Runs, tmp_path: Path, second: signal.Signals, serves: bool
) -> None:
    """It ends the patience with the server, whoever sends it; the summary still comes. A CI that
    cancels sends SIGINT, then SIGTERM, and SIGKILL 2.5 s later: there is nothing left by then.
    """
    found = launched(runs, tmp_path, "-kwaits", grace=60, serves=serves)
    if serves:
        eventually((tmp_path / "waiting").exists)
    found.run.send(signal.SIGINT)
    eventually(lambda: "SIGTERM" in found.run.log)
    found.run.send(second)
    found.has_ended(INTERRUPTED)
    assert "UNDECIDED: " in found.run.output


def test_sigkill(runs: Runs, tmp_path: Path) -> None:
    """Pytest can do nothing any more; its supervisor can."""
    found = launched(runs, tmp_path)
    found.run.send(signal.SIGKILL)
    found.has_ended(-signal.SIGKILL, at_once=False)


def test_sigkill_of_pytest_and_its_supervisor(runs: Runs, tmp_path: Path) -> None:
    """The next run does it, before anything else, and says so."""
    found = launched(runs, tmp_path)
    freeze(found.run.pid)
    os.kill(found.pids[0], signal.SIGKILL)
    found.run.send(signal.SIGKILL)
    assert found.run.wait() == -signal.SIGKILL
    assert len(found.left) >= 4
    (tmp_path / ".llmdeploy" / "s.log").unlink()
    again = launched(runs, tmp_path)
    again.run.send(signal.SIGTERM)
    again.has_ended(INTERRUPTED)
    assert found.left == []
    swept = f"\nserver   swept what the run of pid {found.run.pid} left of s: 2 processes"
    assert swept in again.run.output


@pytest.mark.parametrize(("method", "at_once"), [("thread", False), ("signal", True)])
def test_a_time_out(runs: Runs, tmp_path: Path, method: str, at_once: bool) -> None:
    """pytest-timeout ends the run with os._exit, or raises whatever is going on."""
    pytest.importorskip("pytest_timeout")
    given = ("-ppytest_timeout", "--timeout=1.5", f"--timeout-method={method}")
    found = launched(runs, tmp_path, "-kwaits", *given)
    found.has_ended(1, at_once=at_once)
    assert "Timeout" in found.run.output


def test_a_crash_in_a_fixture(runs: Runs, tmp_path: Path) -> None:
    """A user's own fixture fails when the server is up."""
    found = launched(runs, tmp_path, "-kcrashes", serves=True)
    found.has_ended(1)
    assert "mine" in found.run.output


def test_the_normal_end(runs: Runs, tmp_path: Path) -> None:
    """The row says that nothing is left, and what had to be removed."""
    found = launched(runs, tmp_path, "-kclean_stop", serves=True)
    found.has_ended(0)
    (entry,) = json.loads((tmp_path / "out.json").read_text())["specs"]
    (row,) = (row for row in entry["rows"] if row["check"] == "clean_stop")
    assert row["status"] == "PASS", row
    assert set(row["evidence"]) >= {"processes", "sockets", "temporary files", "shared memory"}


def test_an_interrupted_run_writes_its_report(pytester: pytest.Pytester) -> None:
    """Ctrl-C in the middle keeps the rows there are, and names what did not run."""
    spec = own_checks(
        pytester,
        """
@check("One")
def one(expect): expect(0).at_most(1)
@check("Two")
def two(expect): raise KeyboardInterrupt
@check("Three")
def three(expect): expect(0).at_most(1)
""",
    )
    # In this process, pytester would hand the interrupt on to the run that we are in.
    arguments = ["--deploy-spec", str(spec), "--deploy-plan-only", "--deploy-report=out.json"]
    result = pytester.runpytest_subprocess(*QUICK, *arguments)
    (entry,) = json.loads((pytester.path / "out.json").read_text())["specs"]
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert statuses(entry)["one"] == "PASS"
    assert {"s.yaml::two", "s.yaml::three"} <= set(entry["not_run"])
    assert entry["verdict"] == "UNDECIDED"
