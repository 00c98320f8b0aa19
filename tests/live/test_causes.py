"""The known causes of a failed start, provoked on a real vLLM: as it is launched, without the plan
that would refuse most of them. The others are recorded, in tests/serving/causes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmdeploy.serving import ServerFailedError
from pytest_llmdeploy.serving.diagnosis import known_causes
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import Spec, load_spec

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
