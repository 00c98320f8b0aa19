"""A deployment from before its launch until its devices are free again, over the fake driver."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy import deployment as deployment_module
from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.report.json_file import report
from pytest_llmdeploy.serving import Command, ServerFailedError, readiness, start
from pytest_llmdeploy.serving import process as process_module
from pytest_llmdeploy.spec import Spec
from tests.fake_nvml import FakeNvml
from tests.plan.deployments import made
from tests.report.rows import checklist
from tests.report.test_json_file import validate
from tests.serving.processes import eventually, fake_vllm, python
from tests.standin import Standin

MIB = 1024**2
MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"
FREE, BASELINE, SERVING = 4 * MIB, 1004 * MIB, 70_004 * MIB
SHORT = {
    "name": "short",
    "input_tokens": 16,
    "output_tokens": 4,
    "concurrency": 2,
    "warmup": "100ms",
    "max_duration": "1200ms",
    "require": {"errors": "0%"},
}
Make = Callable[..., Deployment]


@pytest.fixture
def deployed(machine: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Deployments of the 70B spec; a stand-in is launched in vLLM's place."""
    del machine
    monkeypatch.setattr(process_module, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(readiness, "_POLL_SECONDS", 0.02)
    settings = json.dumps({"model": MODEL, "vocab_size": 128256})
    monkeypatch.setattr(start, "launch_command", lambda _spec, port: fake_vllm(port, settings))
    found: list[Deployment] = []

    def make(url: str | None = None, **changes: Any) -> Deployment:
        found.append(Deployment(made(**changes), tmp_path / "server.log", url))
        return found[-1]

    yield make
    for deployment in found:
        deployment.close()


def use(machine: FakeNvml, used: int, **others: int) -> None:
    """So much in use of every GPU."""
    keys = {f"gpu{index}.mem.used": used for index in range(8)}
    machine.update({**keys, **others})


def test_from_the_baseline_to_the_end(
    machine: FakeNvml, deployed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the launch, at rest, under load and after the stop, each as it was then."""
    use(machine, FREE, **{"gpu2.mem.used": BASELINE})
    launch: Callable[[Spec, int], Command] = vars(start)["launch_command"]

    def fills(spec: Spec, port: int) -> Command:
        use(machine, SERVING)
        return launch(spec, port)

    monkeypatch.setattr(start, "launch_command", fills)
    deployment = deployed(workloads=[SHORT])
    assert deployment.server.pid in deployment.server.read_pids()
    assert deployment.host.devices[2].used.value == BASELINE
    use(machine, SERVING + MIB, **{"gpu.util.gpu": 97, "gpu6.xid": 13})
    assert set(deployment.traffic["short"].outcomes) == {"ok"}
    looks = deployment.traffic.devices
    assert len(looks.looks) >= 2
    assert {e.value for e in looks.most(lambda device: device.used).values()} == {SERVING + MIB}
    eventually(lambda: bool(deployment.server.read_xids().seen))
    xids = deployment.server.read_xids()
    assert (xids.seen, len(xids.devices), xids.problem) == ({"GPU 6": (13,)}, 8, "")
    use(machine, FREE, **{"gpu2.mem.used": BASELINE})
    assert [device.used.value for device in deployment.stopped.devices][1:3] == [FREE, BASELINE]
    assert deployment.stopped is deployment.stopped
    found = deployment.to_json()
    validate_devices(found)
    devices = found["devices"]
    used = {
        part: [device["used_bytes"] for device in devices[part]][:3]
        for part in ("before", "at_rest", "after")
    }
    assert used == {
        "before": [FREE, FREE, BASELINE],
        "at_rest": [SERVING] * 3,
        "after": [FREE, FREE, BASELINE],
    }
    assert set(devices["under_load"]["series"]) == {f"GPU {index}" for index in range(8)}


def validate_devices(facts: dict[str, Any]) -> None:
    """The whole report of such a deployment keeps the contract."""
    validate(report([checklist(facts=facts)]))


def test_memory_that_does_not_come_back(
    machine: FakeNvml, deployed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for so long and no longer, and is in what is left; 64 MiB more are none."""
    monkeypatch.setattr(deployment_module, "_RETURN_SECONDS", 0.3)
    deployment = deployed()
    _ = deployment.server
    use(machine, FREE + 64 * MIB, **{"gpu2.mem.used": BASELINE, "gpu5.mem.used": SERVING})
    assert deployment.stopped.devices[5].used.value == SERVING
    assert deployment.traffic.devices.looks == ()


def test_gpus_that_another_run_has(machine: FakeNvml, deployed: Make) -> None:
    """Nothing is launched on them, and whose they are is said; they are free after the stop."""
    use(machine, FREE)
    first, second = deployed(), deployed()
    assert first.server.pid
    with pytest.raises(ServerFailedError, match=rf"is taken by another run \(pid {os.getpid()}, "):
        _ = second.server
    first.close()
    assert deployed().server.pid


def test_a_server_that_was_there_is_watched_too(machine: FakeNvml, deployed: Make) -> None:
    """From when it was attached to; it is not ours to stop."""
    with Standin(model=MODEL, max_model_len=8192) as standin:
        server = deployed(url=standin.url).server
        assert standin.pid in server.read_pids()
        machine.update({"gpu1.xid": 79})
        eventually(lambda: server.read_xids().seen == {"GPU 1": (79,)})


def test_a_start_that_fails_ends_the_watch(deployed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left that watches, and the baseline can still be read."""
    monkeypatch.setattr(start, "launch_command", lambda _spec, _port: python("raise SystemExit(3)"))
    deployment = deployed()
    with pytest.raises(ServerFailedError):
        _ = deployment.server
    deployment.close()
    assert len(deployment.host.devices) == 8
    assert deployment.to_json()["devices"]["at_rest"] is None


def test_on_the_cpu_there_is_nothing_to_watch(tmp_path: Path) -> None:
    """No GPU, no XIDs: whoever asks is told so."""
    with Standin(model="m") as standin:
        spec = made(hardware={"device": "cpu"}, parallel={"tensor": 1})
        deployment = Deployment(spec, tmp_path / "server.log", standin.url)
        assert deployment.server.read_xids().problem.startswith("unsupported: ")
        deployment.close()
