"""The known causes of a failed start, provoked on a real vLLM: as it is launched, without the plan
that would refuse most of them. The others are recorded, in tests/serving/causes.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmdeploy.load import runner
from pytest_llmdeploy.load.runner import Target, run_workloads
from pytest_llmdeploy.serving import Server, ServerFailedError
from pytest_llmdeploy.serving.diagnosis import known_causes
from pytest_llmdeploy.serving.hang import stopped_processes
from pytest_llmdeploy.serving.process import ServerProcess
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import Spec, Workload, load_spec
from tests.live.conftest import TINY

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",
}
# What is changed in the spec that works; the two that take longest begin together.
PROVOKED: dict[str, dict[str, Any]] = {
    "kv-cache-too-small": {
        "serve": {"kv_cache_memory_bytes": "1MiB", "env": ENVIRONMENT},
        "parallel": {"tensor": 1},
    },
    "cores": {"serve": {"env": {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "0"}}},
    "heads": {"parallel": {"tensor": 3}, "hardware": {"devices_per_node": 3}},
    "max-model-len": {"serve": {"max_model_len": 1048576}},
    "model": {"model": {"id": "./nowhere"}},
}
STEADY = {
    "name": "steady",
    "input_tokens": 32,
    "output_tokens": 16,
    "concurrency": 4,
    "warmup": "0s",
    "max_duration": "5min",
    "require": {"concurrent_sequences": 10_000},
}


def failure(spec: Spec, log: Path) -> str:
    """What is said of a start that fails."""
    with pytest.raises(ServerFailedError) as caught:
        launch(spec, log, lambda _text: None)
    return str(caught.value)


def test_failed_starts_say_why(tiny_spec: Callable[..., Path], tmp_path: Path) -> None:
    """Cause, decisive line and hint of each, long before the time for the start is over."""
    specs = {name: load_spec(tiny_spec(**changes)) for name, changes in PROVOKED.items()}
    logs = {name: tmp_path / f"{name}.log" for name in specs}
    with ThreadPoolExecutor(2) as pool:
        failures = dict(zip(specs, pool.map(failure, specs.values(), logs.values()), strict=True))
    for name, text in failures.items():
        known, lines = known_causes()[name], text.splitlines()
        assert lines[0] == f"the server did not become ready: {known.cause}", text
        assert f"hint: {known.hint}" in lines
        assert known.pattern.search(next(line for line in lines if line.startswith("log: ")))
    assert psutil.Process().children(recursive=True) == []


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[Server, ServerProcess]]:
    """A server for one test, and its process."""
    server, process = launch(load_spec(TINY), tmp_path / "server.log", lambda _text: None)
    yield server, process
    process.stop()


def test_a_stopped_worker_is_a_hang(
    own_server: tuple[Server, ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health goes on to answer 200. The traffic ends, says so, and the stop takes the worker
    along, which does not hear a SIGTERM.
    """
    server, process = own_server
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", 5.0)
    worker = next(p for p in process.tree() if p.cmdline()[0].startswith("VLLM::Worker_TP1"))
    asked: list[float] = []

    def stop_once() -> str:
        asked.append(time.monotonic())
        if asked[-1] > asked[0] + 2 and worker.status() != "stopped":
            os.kill(worker.pid, signal.SIGSTOP)
        return server.death

    workloads = (Workload.model_validate(STEADY),)
    spec = load_spec(TINY).model_copy(update={"workloads": workloads})
    model = str(server.model["id"])
    target = Target(
        endpoint=server.endpoint,
        model=model,
        vocab=259,
        death=stop_once,
        stopped=lambda: stopped_processes(server.read_pids()),
    )
    traffic = run_workloads(spec, target)["steady"]
    assert re.fullmatch(
        r"the server hangs: no token for 5 s while /health answers 200: "
        rf"VLLM::Worker_TP1 \(pid {worker.pid}\) is stopped",
        traffic.interrupted,
    )
    stopped = process.stop()
    assert not stopped.processes
    assert stopped.seconds < 30
