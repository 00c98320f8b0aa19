"""Bytes per rank: weights and KV cache exactly, the rest as ranges with their source."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llmdeploy.facts import memory_range
from pytest_llmdeploy.plan.kv_cache import Group, stage_bytes_per_token
from pytest_llmdeploy.plan.layout import Stage
from pytest_llmdeploy.plan.limits import (
    GIB,
    block_size,
    max_model_len,
    max_num_batched_tokens,
    max_num_seqs,
)
from pytest_llmdeploy.plan.shape import DTYPE_BYTES, ModelShape
from pytest_llmdeploy.plan.sizes import Sizes
from pytest_llmdeploy.spec import Spec


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of one rank in bytes; None where the spec does not determine it."""

    weights: int
    kv_per_token: float
    block: int
    activation: tuple[int, int]
    requested: int | None
    kv_available: tuple[int, int] | None

    @property
    def kv_blocks(self) -> tuple[int, int] | None:
        """Blocks that fit into what is available, at least and at most."""
        if self.kv_available is None or not self.block:
            return None
        low, high = self.kv_available
        return low // self.block, high // self.block


def resolved_dtype(spec: Spec, shape: ModelShape) -> str:
    """The dtype of weights and KV cache; `auto` is the checkpoint's, and half of float32."""
    if spec.model.dtype != "auto":
        return spec.model.dtype
    return "bfloat16" if shape.dtype == "float32" else shape.dtype


def memory_use(
    spec: Spec, sizes: Sizes, groups: tuple[Group, ...], stage: Stage, experts: int | None
) -> MemoryUse:
    """The memory of a rank on `stage` that holds so many routed experts (None: a part of all)."""
    shape = sizes.shape
    size = sizes.stage(stage, spec.parallel.tensor, spec.parallel.expert_tensor)
    weights = size.dense + size.expert * (shape.experts if experts is None else experts)
    kv_per_token = kv_bytes_per_token(spec, shape, groups, stage)
    activation = _activation(spec, sizes, stage)
    requested = requested_bytes(spec)
    if (fixed := kv_cache_bytes(spec)) is not None:
        available: tuple[int, int] | None = (fixed, fixed)
        requested = requested if spec.hardware.device.platform == "cuda" else None
    elif requested is None:
        available = None
    else:
        low, high = activation
        available = (max(0, requested - weights - high), max(0, requested - weights - low))
    block = round(kv_per_token * block_size(spec, shape))
    return MemoryUse(weights, kv_per_token, block, activation, requested, available)


def kv_bytes_per_token(
    spec: Spec, shape: ModelShape, groups: tuple[Group, ...], stage: Stage
) -> float:
    """Bytes that a block takes for each of its tokens on that stage."""
    if stage.layers is None:
        return 0
    width = cache_width(spec, shape)
    return stage_bytes_per_token(groups, stage.layers, spec.parallel.tensor, width)


def cache_width(spec: Spec, shape: ModelShape) -> float:
    """Bytes of one element of the KV cache (kv_cache_dtype)."""
    name = spec.serve.kv_cache_dtype
    if name.startswith("fp8"):
        return 1
    return DTYPE_BYTES.get(name, DTYPE_BYTES[resolved_dtype(spec, shape)])


def requested_bytes(spec: Spec) -> int | None:
    """What vLLM fills on each device (v1/worker/utils.py: request_memory)."""
    visible = spec.hardware.device.visible_bytes
    return None if visible is None else math.ceil(visible * spec.serve.gpu_memory_utilization)


def kv_cache_bytes(spec: Spec) -> int | None:
    """The KV cache per rank where the spec fixes it; on the CPU the variable wins
    (platforms/cpu.py).
    """
    space = spec.serve.env.get("VLLM_CPU_KVCACHE_SPACE")
    if spec.hardware.device.platform == "cpu" and space and (space.text or "").isdigit():
        return int(space.text or 0) * GIB
    return spec.serve.kv_cache_memory_bytes


def _activation(spec: Spec, sizes: Sizes, stage: Stage) -> tuple[int, int]:
    if spec.hardware.device.platform == "cpu":
        low, high = memory_range("cpu_process")
        return round(low), round(high)
    low, high = _peak(spec, sizes, stage)
    grouped = spec.parallel.world_size > 1
    outside = memory_range("outside_torch_grouped" if grouped else "outside_torch_alone")
    graphs = (0.0, 0.0) if spec.serve.enforce_eager else memory_range("cuda_graphs")
    return round(low + outside[0] + graphs[0]), round(high + outside[1] + graphs[1])


def _peak(spec: Spec, sizes: Sizes, stage: Stage) -> tuple[float, float]:
    """The larger of a forward pass of all batched tokens, and sampling for all sequences.

    With an encoder for images, the sampler was once seen to take less than the forward pass.
    """
    shape = sizes.shape
    tokens = max_num_batched_tokens(spec, max_model_len(spec, shape))
    # Residual stream, its norm, and the widest of the projections, in the model's dtype.
    width = 2 * shape.hidden + sizes.widest(spec.parallel.tensor)
    forward = tokens * width * DTYPE_BYTES[resolved_dtype(spec, shape)]
    low, high = (factor * forward for factor in memory_range("forward_factor"))
    if stage.is_last:
        logits = max_num_seqs(spec) * shape.vocab
        least, most = (logits * size for size in memory_range("sampler_bytes_per_logit"))
        low, high = low if shape.towers else max(low, least), max(high, most)
    return low, high
