"""Workers, found among harmless processes that bear vLLM's titles."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pytest_llmdeploy.probes import workers
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.spec import Spec
from tests.serving.processes import eventually

GIB = 1024**3
Tree = dict[str, list[str]]


def spec(*, memory: str | None = "4GiB", **parallel: int) -> Spec:
    device = {"name": "cpu", **({"memory": memory} if memory else {})}
    return Spec.model_validate(
        {
            "version": 1,
            "model": {"id": "m"},
            "hardware": {"device": device, "devices_per_node": 8},
            "parallel": parallel,
        }
    )


@contextmanager
def server(tree: Tree) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose children have the titles that are keys, and their children the others."""
    script = "; ".join(_start(title, children) for title, children in tree.items())
    root = subprocess.Popen(
        ["api_server", "-c", f"{script}; wait"], executable="/bin/bash", start_new_session=True
    )
    wanted = Counter([*tree, *(title for children in tree.values() for title in children)])
    try:
        deadline = time.monotonic() + 10
        while Counter(_titles(root.pid)) != wanted:
            assert time.monotonic() < deadline, _titles(root.pid)
            time.sleep(0.01)
        yield root
    finally:
        os.killpg(root.pid, signal.SIGKILL)
        root.wait()


def _start(title: str, children: list[str]) -> str:
    body = "; ".join([*(_start(child, []) for child in children), "wait" if children else ":"])
    run = f"bash -c {shlex.quote(body)}" if children else "sleep 60"
    return f"(exec -a {shlex.quote(title)} {run}) &" + " :"


def _titles(root: int) -> list[str]:
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            found += process.cmdline()[:1]
        except psutil.NoSuchProcess:
            continue
    return found


ENGINE_OF_TWO: Tree = {"VLLM::EngineCore": ["VLLM::Worker_TP0", "VLLM::Worker_TP1"]}


@pytest.mark.parametrize(
    ("parallel", "tree", "ranks"),
    [
        pytest.param({}, {"VLLM::EngineCore": ["VLLM::Worker"]}, {0: 0}, id="one"),
        pytest.param({}, {"VLLM::EngineCore": []}, {0: 0}, id="uniprocess"),
        pytest.param({"tensor": 2}, ENGINE_OF_TWO, {0: 0, 1: 0}, id="TP 2"),
        pytest.param(
            {"pipeline": 2},
            {"VLLM::EngineCore": ["VLLM::Worker_PP1", "VLLM::Worker_PP0"]},
            {0: 0, 1: 1},
            id="PP 2",
        ),
        pytest.param(
            {"tensor": 2, "pipeline": 2},
            {"VLLM::EngineCore": [f"VLLM::Worker_PP{p}_TP{t}" for p in (0, 1) for t in (0, 1)]},
            {0: 0, 1: 0, 2: 1, 3: 1},
            id="TP 2 × PP 2",
        ),
        pytest.param(
            {"data": 2},
            {
                "VLLM::EngineCore_DP1": ["VLLM::Worker"],
                "VLLM::EngineCore_DP0": ["VLLM::Worker"],
                "VLLM::DPCoordinator": [],
            },
            {0: 0, 1: 0},
            id="DP 2",
        ),
        pytest.param(
            {"data": 2},
            {"VLLM::EngineCore_DP0": [], "VLLM::EngineCore_DP1": []},
            {0: 0, 1: 0},
            id="DP 2 uniprocess",
        ),
        pytest.param(
            {"tensor": 2},
            {"VLLM::EngineCore": ["VLLM::Worker_TP0_EP0", "VLLM::Worker_TP1_EP1"]},
            {0: 0, 1: 0},
            id="TP 2, EP 2",
        ),
    ],
)
def test_ranks_follow_from_the_titles(
    parallel: dict[str, int], tree: Tree, ranks: dict[int, int]
) -> None:
    """Each worker is one device, with its rank and its pipeline stage."""
    with server(tree) as root:
        devices = workers.read_workers(spec(memory="4GiB", **parallel), root.pid)
    assert {int(d.name.removeprefix("rank ")): d.stage for d in devices} == ranks
    assert len(devices) == len(ranks)


def test_the_rank_of_a_copy_comes_from_its_engine() -> None:
    """The title of a worker does not name its data-parallel copy; that of its parent does."""
    with server({f"VLLM::EngineCore_DP{n}": ["VLLM::Worker"] for n in (1, 0)}) as root:
        devices = workers.read_workers(spec(data=2), root.pid)
        parents = [
            parent.cmdline()[0]
            for device in devices
            if (parent := psutil.Process(int(device.identity)).parent())
        ]
    assert parents == ["VLLM::EngineCore_DP0", "VLLM::EngineCore_DP1"]


def test_memory_is_private_and_its_total_is_declared() -> None:
    """What a worker uses is its own memory; what it has is what the spec says."""
    with server(ENGINE_OF_TWO) as root:
        devices = workers.read_workers(spec(tensor=2), root.pid)
    assert [device.total.value for device in devices] == [4 * GIB, 4 * GIB]
    assert all(0 < (device.used.value or 0) < 50 * 1024**2 for device in devices)


def test_undeclared_memory_is_shared_out() -> None:
    """Without a declaration, the workers share what the machine has."""
    with server(ENGINE_OF_TWO) as root:
        first, second = workers.read_workers(spec(memory=None, tensor=2), root.pid)
    assert first.total.value == second.total.value
    assert first.total.value is not None
    assert first.total.value <= psutil.virtual_memory().total / 2


def test_a_dead_worker_is_not_a_device() -> None:
    """A worker that was killed is missing, even while its parent has not taken notice."""
    with server(ENGINE_OF_TWO) as root:
        first = workers.read_workers(spec(tensor=2), root.pid)[0]
        victim = psutil.Process(int(first.identity))
        victim.kill()
        while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert [d.name for d in workers.read_workers(spec(tensor=2), root.pid)] == ["rank 1"]


def test_a_worker_that_vanishes_while_it_is_read() -> None:
    """Nothing of it is a number, whether its parent has taken notice or not."""
    gone = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(gone.pid)
    usage = workers._Usage(process)
    gone.kill()
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    lost = "lost: the worker is gone"
    assert workers._private_bytes(process).problem == lost
    gone.wait()
    for reading in (workers._private_bytes(process), usage.read()):
        assert (reading.value, reading.problem) == (None, lost)


def test_private_memory_is_what_its_mappings_add_up_to() -> None:
    """What the kernel counts is near the sum over all mappings, for a process with 64 MiB."""
    script = "import sys; kept = bytearray(b'x' * 2**26); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        process = psutil.Process(running.pid)
        found = workers._private_bytes(process).value
        assert found is not None
        assert found > 2**26
        assert abs(found - process.memory_full_info().uss) < 4 * 1024**2
        running.kill()


def test_utilization_is_counted_from_look_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the cores that a worker may use, at first from its start; of two looks at once,
    the second goes back as far as the first.
    """
    clock, used = [100.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(workers, "_cpu_seconds", lambda _process: used[0])
    monkeypatch.setattr(workers, "_cores", lambda _process: 2)
    started = psutil.Process()
    monkeypatch.setattr(started, "create_time", lambda: time.time() - 20.0)
    usage = workers._Usage(started)
    found = []
    for seconds, busy in ((0.0, 8.0), (1.0, 0.5), (1.0, 2.0), (0.01, 0.0), (1.0, 0.0)):
        clock[0] += seconds
        used[0] += busy
        found.append(usage.read().value)
    assert found == pytest.approx([0.2, 0.25, 1.0, 2.0 / 1.01 / 2, 0.0], abs=1e-3)


def test_the_workers_are_not_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as all are there; each look has the same ones, with what they use."""
    with server(ENGINE_OF_TWO) as root:
        found = workers.Workers(spec(tensor=2), root.pid)
        first = found.read()
        monkeypatch.setattr(found, "_search", list)
        second = found.read()
        assert [d.identity for d in first] == [d.identity for d in second]
        shares = [evidence.value for evidence in second.read(Field.UTILIZATION).values()]
        assert shares == pytest.approx([0, 0], abs=0.1)
        psutil.Process(int(first[0].identity)).kill()
        eventually(lambda: not found.read())


def test_no_server_process() -> None:
    """When the server is gone, there are no devices, and the reading says so."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    devices = workers.read_workers(spec(), gone.pid)
    assert [e.problem for e in devices.used.values()] == ["error: the server's process is gone"]
