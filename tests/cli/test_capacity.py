"""`llmdeploy capacity`: the table, the interval, the exit code, and what it refuses."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmdeploy.cli import main
from pytest_llmdeploy.cli.capacity import page
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load import runner, trial
from pytest_llmdeploy.load.capacity import Capacity
from pytest_llmdeploy.load.trial import Trial
from tests.load.workloads import workload
from tests.specs import STEADY, write_spec
from tests.standin import Fault, Standin

LIMITS = {"ttft": {"p50": "2s"}, "errors": "0%"}
# Two seats of 27 ms: 74 requests per second, between two rates of the search.
SEATS = {"ttft_ms": 26, "tpot_ms": 1, "max_num_seqs": 2}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes 8 s takes half a second."""
    monkeypatch.setattr(trial, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(runner, "_FIRST_LOOK_SECONDS", 0.5)


def spec(folder: Path, **overrides: Any) -> Path:
    """A spec with one workload."""
    steady = {
        **STEADY,
        "output_tokens": 2,
        "rate": "50/s",
        "max_duration": "20s",
        "require": LIMITS,
        **overrides,
    }
    return write_spec(folder / "spec.yaml", workloads=[steady])


def tried(rate: float, status: Status = Status.PASS, **found: Any) -> Trial:
    milliseconds = {"ttft p50": 110.25, "ttft p99": 1204.0, "tpot p50": 11.0, "tpot p99": 12.5}
    latencies = {**milliseconds, "e2el p50": 900.0 * rate}
    return Trial(rate=rate, status=status, served=rate, **{"latencies": latencies, **found})


def test_the_page() -> None:
    """A row for each rate, the reasons below it, the interval and the knee: 80 columns."""
    failed = dict.fromkeys(("ttft p50", "ttft p99"), math.inf)
    found = Capacity(
        [
            tried(8),
            tried(16, Status.FAIL, limit="TTFT p99", reason="≥ 1,204 ms, required: ≤ 1,000 ms"),
            tried(
                32, Status.FAIL, limit="Errors", reason="80 %, required: ≤ 0 %", latencies=failed
            ),
            tried(11.313, Status.INCONCLUSIVE, limit="TTFT p99", reason="412 requests " * 12),
        ],
        "11.31/s could not be decided",
    )
    text = page(workload(name="steady"), found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("steady, latencies in ms\n\n")
    assert text.splitlines()[2].split() == [
        *("Rate", "Served", "TTFT", "p50", "p99", "TPOT", "p50", "p99", "Holds"),
    ]
    rows = [line.split("  ")[0] for line in text.splitlines()[4:8]]
    assert rows == ["8/s", "11.31/s", "16/s", "32/s"]
    assert "16/s: TTFT p99 ≥ 1,204 ms, required: ≤ 1,000 ms\n" in text
    assert "Capacity, steady: 8/s hold, 16/s do not\n" in text
    assert text.splitlines()[7].split()[2:6] == ["failed", "failed", "-", "-"]
    assert "\nStopped: 11.31/s could not be decided\n" in text
    assert page(workload(name="w"), Capacity([], "1 h are over")) == (
        "Capacity, w: not known\nStopped: 1 h are over\n"
    )


@pytest.mark.usefixtures("quick")
def test_an_interval_is_found(
    standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a server whose capacity is known; what was tried is told on the way."""
    standin.configure(**SEATS)
    path = spec(tmp_path)
    assert main(["capacity", str(path), "--url", standin.url, "--precision", "100%", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["workload"], found["precision"], found["stopped"]) == ("steady", 1, None)
    held, failed = found["capacity"]["holds_at"], found["capacity"]["fails_at"]
    # A machine that is busy otherwise serves less, but never more.
    assert held in {25, 50}
    assert failed == 2 * held
    by_rate = {one["rate"]: one for one in found["trials"]}
    assert (by_rate[held]["status"], by_rate[held]["reason"]) == ("PASS", None)
    assert (by_rate[failed]["status"], by_rate[failed]["limit"]) == ("FAIL", "Keeps up")
    assert set(by_rate[held]["limits"]) == {"TTFT p50", "Errors", "Keeps up"}
    assert by_rate[failed]["served_rate"] < 100
    assert found["knee"]["rate"] == held
    first = said.err.splitlines()[0]
    assert first.startswith(f"50/s: {by_rate[50]['status']}")


@pytest.mark.usefixtures("quick")
def test_a_sweep(
    standin: Standin,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rates that are given, and what holds at them; the key goes along."""
    standin.configure(**SEATS, api_key="secret")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    path = spec(tmp_path)
    assert main(["capacity", str(path), "--url", f"{standin.url}/v1", "--rates", "250/s, 40"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[4:6]]
    assert [(row[0], row[-1]) for row in rows] == [("40/s", "PASS"), ("250/s", "up")]
    assert "Capacity, steady: 40/s hold, 250/s do not\n" in out


def test_a_server_that_only_fails(
    standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its error ends the search, with what is known."""
    standin.configure(faults=[Fault("http_500", after=20)])
    path = spec(tmp_path, rate="300/s")
    assert main(["capacity", str(path), "--url", standin.url]) == 0
    out = capsys.readouterr().out
    assert "300/s: Errors " in out
    assert "Capacity, steady: less than 300/s\n" in out
    assert "Stopped: 50 requests in a row failed: HTTP 500" in " ".join(out.split("\n  "))


@pytest.mark.usefixtures("quick")
def test_nothing_can_be_decided(
    standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two requests tell nothing: exit code 1, and what it would take."""
    path = spec(tmp_path, rate="2/s", max_duration="1s")
    assert main(["capacity", str(path), "--url", standin.url]) == 1
    out = capsys.readouterr().out
    assert "Capacity, steady: not known\nStopped: 2/s could not be decided\n" in out
    assert "INCONCLUSIVE" in out


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody listens, nothing is decided, and the reason is one that can be acted on."""
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["capacity", str(spec(tmp_path)), "--url", url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"llmdeploy capacity: no answer at {url}/health within 3 s\n")
    assert said.err.endswith("hint: check --url, and that the server is up\n")


URL = ["--url", "http://127.0.0.1:1"]
OPEN = {"name": "b", "input_tokens": 8, "output_tokens": 8, "rate": 1}
CLOSED = {"name": "peak", "input_tokens": 8, "output_tokens": 8, "concurrency": 4}


@pytest.mark.parametrize(
    ("arguments", "workloads", "message"),
    [
        (["--url", "localhost:8000"], [STEADY], "--url: found 'localhost:8000': write a URL"),
        ([*URL, "--precision", "tight"], [STEADY], "--precision: 'tight' is not a fraction"),
        ([*URL, "--precision", "0"], [STEADY], "--precision: an interval without a width"),
        ([*URL, "--rates", "1,,2"], [STEADY], "--rates: '' is not a rate"),
        ([*URL, "--rates", "1,0"], [STEADY], "--rates: a rate of 0 sends nothing"),
        ([*URL, "--time", "5"], [STEADY], "--time: '5' is not a duration"),
        ([*URL, "--workload", "stedy"], [STEADY], "has no 'stedy': did you mean 'steady'?"),
        (URL, [STEADY, OPEN], "--workload: which one of steady, b?"),
        (URL, [CLOSED], "only a workload with a rate has a capacity"),
        ([*URL, "--workload", "peak"], [STEADY, CLOSED], "only a workload with a rate"),
        (URL, [], "only a workload with a rate has a capacity"),
        (URL, [{**STEADY, "require": {}}], "the workload 'steady' requires nothing"),
        (URL, [{**STEADY, "rate": 0}], "a rate of 0 sends nothing"),
    ],
)
def test_what_cannot_be_asked(
    arguments: list[str],
    workloads: list[Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and one line that says why; no server is asked for anything."""
    path = write_spec(tmp_path / "spec.yaml", workloads=workloads)
    assert main(["capacity", str(path), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("llmdeploy capacity: ")
    assert message in said.err


def test_ctrl_c(standin: Standin, tmp_path: Path) -> None:
    """It ends at once, no worker stays, and there is no traceback."""
    standin.configure(ttft_ms=5)
    # Whoever runs the tests in the background has the signal ignored, and it would be inherited.
    code = """
import signal, sys
from pytest_llmdeploy.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        [*command, "capacity", str(spec(tmp_path)), "--url", standin.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while len(standin.requests()) < 30 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert workers
    assert process.returncode == 130
    assert (out, err) == ("Capacity, steady: not known\nStopped: interrupted\n", "")
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
