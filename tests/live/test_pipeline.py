"""A pipeline on a real vLLM: its stages as devices, and beside what is planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan.agreement import agreement
from pytest_llmdeploy.spec import load_spec
from pytest_llmdeploy.units import Fraction
from tests.live.conftest import SHORT

TOLERANCE = Fraction(0.05)
MIB = 1024**2


def test_a_pipeline_has_a_worker_for_each_stage(
    tiny_spec: Callable[..., Path], tmp_path: Path
) -> None:
    """PP 2, compiled as it must be: stages are found, and each takes what is planned for it."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }
    path = tiny_spec(
        parallel={"tensor": 1, "pipeline": 2},
        serve={"enforce_eager": False, "env": environment},
        workloads=[SHORT],
        require={"plan_agrees": "5%"},
    )
    deployment = Deployment(load_spec(path), tmp_path / "server.log")
    try:
        stages = deployment.server.devices.by_stage()
        assert {stage: [d.name for d in devices] for stage, devices in stages.items()} == {
            0: ["rank 0"],
            1: ["rank 1"],
        }
        workers = {int(device.identity) for device in deployment.server.devices}
        assert workers < deployment.server.read_pids()
        at_rest = agreement(deployment.plan, deployment.server.devices.used, TOLERANCE)
        assert at_rest.status is Status.PASS, at_rest
        looks = deployment.traffic.devices
        most = agreement(deployment.plan, looks.most(lambda device: device.used), TOLERANCE)
        assert most.status is Status.PASS, most
        assert not deployment.stopped.processes
    finally:
        deployment.close()
    seen = deployment.to_json()["devices"]
    assert [device["used_bytes"] > 256 * MIB for device in seen["at_rest"]] == [True, True]
    assert set(seen["under_load"]["series"]) == {"rank 0", "rank 1"}
    assert (seen["before"], seen["after"]) == (None, None)
