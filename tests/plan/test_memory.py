"""The KV pool on GPUs against eight measured deployments, and what the ranges cost."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pytest_llmdeploy.plan.planner import Sized
from pytest_llmdeploy.plan.shape import shape_of
from pytest_llmdeploy.spec import Spec
from tests.plan.deployments import made
from tests.plan.test_weights import kept_twice

GIB = 1024**3


class Pool(NamedTuple):
    """One deployment on H100: how it was launched, and the KV pool of each device in GiB."""

    model: str
    tp: int
    utilization: float
    gib: float


# vLLM 0.11, max_model_len 16000, max_num_seqs 1024, blocks of 128: llm-d-incubation/llm-d-planner,
# docs/empirical-vllm-memory-results.md (Apache-2.0). Its table says 0.9 for gpt-oss-120b, whose
# own figures only add up with 0.95.
POOLS = [
    Pool("openai/gpt-oss-20b", 1, 0.9, 50.28),
    Pool("openai/gpt-oss-120b", 1, 0.95, 3.33),
    Pool("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 2, 0.9, 32.00),
    Pool("meta-llama/Llama-3.1-8B-Instruct", 1, 0.9, 51.38),
    Pool("Qwen/Qwen3-0.6B", 1, 0.9, 64.45),
    Pool("Qwen/Qwen3-32B", 1, 0.9, 4.45),
    Pool("Qwen/Qwen3-32B", 2, 0.9, 34.49),
    Pool("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 1, 0.95, 28.20),
]


def deployed(row: Pool) -> Spec:
    return made(
        model={"id": row.model, "dtype": "auto"},
        hardware={"devices_per_node": row.tp},
        parallel={"tensor": row.tp},
        serve={
            "max_model_len": 16_000,
            "max_num_seqs": 1024,
            "gpu_memory_utilization": row.utilization,
            "block_size": 128,
        },
    )


def pool(row: Pool) -> tuple[float, float]:
    """The planned pool in GiB, at least and at most, with what vLLM 0.11 kept of mxfp4."""
    spec = deployed(row)
    shape = shape_of(spec)
    (use,) = Sized.of(spec, shape).uses.values()
    assert use.kv_available is not None
    low, high = ((available - kept_twice(shape)) / GIB for available in use.kv_available)
    return low, high


@pytest.mark.parametrize("row", POOLS, ids=lambda row: f"{row.model.split('/')[1]}-{row.tp}")
def test_the_measured_pool_is_in_the_range(row: Pool) -> None:
    """Eight of eight lie in the range that is printed, and it is no wider than it may be.

    The two of gpt-oss with a correction for vLLM 0.11 (see `kept_twice`): without it, the pool of
    gpt-oss-120b is planned 2 GiB too large for that version.
    """
    low, high = pool(row)
    assert low <= row.gib <= high
    assert (high - low) / 2 <= max(0.1 * (low + high) / 2, 1.0)


def test_the_middle_is_close() -> None:
    """The middle of the range is within 3 % in five of eight; the two small pools and the model
    with a vision tower are the others.
    """
    errors = [abs(sum(pool(row)) / 2 / row.gib - 1) for row in POOLS]
    assert sum(error <= 0.03 for error in errors) >= 5


def test_eager_mode_captures_no_graphs() -> None:
    """Without CUDA graphs there is up to 1 GiB more, and the range is narrower."""
    row = POOLS[3]
    eager = deployed(row).model_copy(
        update={"serve": deployed(row).serve.model_copy(update={"enforce_eager": True})}
    )
    (use,) = Sized.of(eager, shape_of(eager)).uses.values()
    assert use.kv_available is not None
    low, high = pool(row)
    assert use.kv_available[1] / GIB == pytest.approx(high)
    assert use.kv_available[0] / GIB == pytest.approx(low + 1)
