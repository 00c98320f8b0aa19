"""What goes wrong on a real vLLM ends in the right row, and leaves nothing running."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.live.conftest import Run

LONG = {
    "name": "long",
    "input_tokens": 32,
    "output_tokens": 64,
    "rate": "8/s",
    "warmup": "500ms",
    "max_duration": "5min",
    "require": {"ttft": {"p99.9": "60s"}, "errors": "0%"},
}


def test_a_worker_killed_in_mid_traffic(
    gate: Callable[..., Run], tiny_spec: Callable[..., Path]
) -> None:
    """The rows of the workload say that the server died, and of what; memory was over too."""
    spec = tiny_spec(
        workloads=[LONG], require={"memory": {"max_utilization": "1%"}, "kv_cache": None}
    )
    run = gate("--deploy-spec", spec)
    run.wait_for(lambda: run.completions() > 30)
    worker = run.worker()
    assert worker is not None
    worker.kill()
    run.finish()
    assert run.returncode == 1
    rows = run.statuses()
    assert rows["memory_utilization"] == "FAIL"
    assert rows["planned_memory_utilization"] == "FAIL"
    # Enough requests failed with it to fail the percentile; else it would be an ERROR.
    assert rows["ttft[long-p99.9]"] in {"FAIL", "ERROR"}
    ttft = run.row("ttft")
    assert "the server died: a worker process died" in ttft["result"] + ttft["hint"]
    assert rows["errors[long]"] == "FAIL"
    assert run.entry["verdict"] == "NOT READY"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_start(
    gate: Callable[..., Run], tiny_spec: Callable[..., Path], number: signal.Signals
) -> None:
    """The plan's rows are reported, the live ones named as not run, and the server is gone."""
    run = gate("--deploy-spec", tiny_spec())
    run.wait_for(lambda: len(run.server_processes()) >= 3)
    run.process.send_signal(number)
    run.finish(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, run.output
    assert run.statuses()["feasible"] == "PASS"
    assert any("::ttft" in id_ for id_ in run.entry["not_run"])
    assert run.entry["verdict"] == "UNDECIDED"


def test_a_killed_gate_leaves_nothing(
    gate: Callable[..., Run], tiny_spec: Callable[..., Path]
) -> None:
    """SIGKILL of pytest closes the lifeline, and the supervisor ends the server."""
    run = gate("--deploy-spec", tiny_spec())
    run.wait_for(run.worker)
    below = run.server_processes()
    run.process.kill()
    run.finish()
    gone, left = psutil.wait_procs(below, timeout=60)
    assert not left
    assert len(gone) >= 4


def test_a_server_that_does_not_start(
    gate: Callable[..., Run], tiny_spec: Callable[..., Path]
) -> None:
    """Its rows are ERRORs that say why, with vLLM's own decisive line and what to change."""
    spec = tiny_spec(serve={"extra_args": ["--no-such-flag=3"]})
    run = gate("--deploy-spec", spec).finish()
    assert run.returncode == 1
    assert run.statuses()["model_served"] == "ERROR"
    assert "this vLLM does not know one of the flags" in run.output
    assert "unrecognized arguments: --no-such-flag=3" in run.output
    assert "hint: check serve and serve.extra_args" in run.output
