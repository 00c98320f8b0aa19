"""The deployments that faults strike: tiny, and with time-outs that a test can wait for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pytest_llmdeploy.spec import load_spec
from tests.faults import impostor
from tests.specs import REPOSITORY, TINY_MODEL

STEADY: Mapping[str, Any] = {
    "name": "steady",
    "input_tokens": 32,
    "output_tokens": 64,
    "rate": "8/s",
    "warmup": "500ms",
    "min_duration": "30s",
    "max_duration": "40s",
    "stall_timeout": "10s",
    "require": {"ttft": {"p50": "10s"}, "errors": "0%"},
}
# One process less to import vLLM: half the time of a start.
_IN_ONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
# What each has of its own: parallel, and the environment of the server.
DEPLOYMENTS: Mapping[str, tuple[Mapping[str, int], Mapping[str, str]]] = {
    "TP 2": ({"tensor": 2}, _TWO_CORES),
    "DP 2": ({"data": 2}, {}),
    "TP 1": ({"tensor": 1}, _IN_ONE),
    "stand-in": ({"tensor": 2}, {}),
}
# What the stand-in must say of itself to be the server of the spec.
_KNOBS: Mapping[str, Any] = {
    "cache_config": {
        "kv_cache_memory_bytes": str(256 * 2**20),
        "num_gpu_blocks": "1024",
        "kv_cache_size_tokens": "131072",
    }
}
# A check that holds the run between the rows at rest and the traffic.
_HELD = """
import os
import time
from pathlib import Path

from pytest_llmdeploy import Expect, Server, check

HERE = Path(__file__).parent


@check("Held")
def held(server: Server, expect: Expect) -> None:
    (HERE / "held").touch()
    deadline = time.monotonic() + 60
    while not (HERE / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    order = (HERE / "go").read_text()
    if order == "exit":
        os._exit(3)
    if order == "raise":
        raise RuntimeError("a check of the user's own")
    expect(1).at_least(1)
"""


def write(folder: Path, on: str, overrides: Mapping[str, Any]) -> tuple[Path, Mapping[str, float]]:
    """The spec in `folder`, and the time-outs in seconds: of the start, the workload, a hang."""
    parallel, environment = DEPLOYMENTS[on]
    serve = dict(overrides.get("serve", {}))
    environment = {**environment, **serve.pop("env", {})}
    if on == "stand-in":
        package = impostor.package(folder / "fake")
        knobs = {**_KNOBS, **overrides.get("stand-in", {})}
        environment = {
            **environment,
            "PYTHONPATH": f"{package}:{REPOSITORY}",
            "IMPOSTOR": json.dumps(knobs),
        }
    workload = {**STEADY, **overrides.get("workload", {})}
    (folder / "held.py").write_text(_HELD)
    document = {
        "version": 1,
        "name": "tiny",
        "model": {"id": str(TINY_MODEL), "dtype": "float32"},
        "hardware": {"device": {"name": "cpu", "memory": "4GiB"}, "devices_per_node": 2},
        "parallel": dict(parallel),
        "serve": {
            "served_model_name": "tiny-llama",
            "load_format": "dummy",
            "max_model_len": 512,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 32,
            "kv_cache_memory_bytes": "256MiB",
            "enforce_eager": True,
            "startup_timeout": "150s",
            **serve,
            "env": {
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                "TORCHDYNAMO_DISABLE": "1",
                **environment,
            },
        },
        "workloads": [workload],
        "checks": ["held.py"],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    spec = load_spec(path)
    return path, {
        "hang": spec.workloads[0].patience.seconds,
        "start": spec.serve.startup_timeout.seconds,
        "workload": spec.workloads[0].max_duration.seconds,
    }
