"""Bytes per rank: weights and KV cache exactly, the rest as ranges with their source."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llmdeploy.plan.layout import Place
from pytest_llmdeploy.plan.shape import DTYPE_BYTES, ModelShape
from pytest_llmdeploy.spec import Spec

GIB = 1024**3

# Sampling one sequence costs this many bytes per vocabulary entry, and everything outside torch
# (CUDA context, NCCL) so much per rank; from the rows of llm-d-planner's
# empirical-vllm-memory-results.md (vLLM 0.11, H100).
_SAMPLER_BYTES = 38.8
_OUTSIDE_TORCH = {"alone": (0.12 * GIB, 0.16 * GIB), "grouped": (0.5 * GIB, 0.6 * GIB)}
_CUDA_GRAPHS = (0.0, 1.1 * GIB)
# A vLLM worker process on the CPU beside its weights and KV cache (private memory, vLLM 0.32).
_CPU_PROCESS = (0.2 * GIB, 0.9 * GIB)

_CACHE_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of one rank in bytes; None where the spec does not determine it."""

    weights: int
    kv_per_token: int
    activation: tuple[int, int]
    requested: int | None
    kv_available: tuple[int, int] | None


def resolved_dtype(spec: Spec, shape: ModelShape) -> str:
    """The dtype of weights and KV cache; `auto` is the checkpoint's, and half of float32."""
    if spec.model.dtype != "auto":
        return spec.model.dtype
    return "bfloat16" if shape.dtype == "float32" else shape.dtype


def memory_use(spec: Spec, shape: ModelShape, place: Place) -> MemoryUse:
    """The memory of the rank at `place`."""
    weights = _weights(spec, shape, place)
    kv_per_token = _kv_per_token(spec, shape, place)
    activation = _activation(spec, shape, place)
    requested = requested_bytes(spec)
    fixed = kv_cache_bytes(spec)
    if fixed is not None:
        available: tuple[int, int] | None = (fixed, fixed)
        requested = requested if spec.hardware.device.platform == "cuda" else None
    elif requested is None:
        available = None
    else:
        low, high = activation
        available = (max(0, requested - weights - high), max(0, requested - weights - low))
    return MemoryUse(weights, kv_per_token, activation, requested, available)


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


def block_size(spec: Spec) -> int:
    """Tokens per KV block: the flag, or vLLM's default on the platform."""
    return spec.serve.block_size or (128 if spec.hardware.device.platform == "cpu" else 16)


def max_num_seqs(spec: Spec) -> int:
    """The flag, or vLLM's default for a server, no more than the tokens that are given
    (engine/arg_utils.py: get_batch_defaults).
    """
    default = 1024 if _is_large(spec) else 256
    return spec.serve.max_num_seqs or min(default, spec.serve.max_num_batched_tokens or default)


def max_num_batched_tokens(spec: Spec, max_model_len: int) -> int:
    """The flag, or vLLM's default for a server, no more than the sequences can use."""
    if spec.serve.max_num_batched_tokens:
        return spec.serve.max_num_batched_tokens
    visible = spec.hardware.device.visible_bytes or 0
    default = 16384 if visible >= 160 * GIB else 8192 if _is_large(spec) else 2048
    return min(default, max_num_seqs(spec) * max_model_len)


def _is_large(spec: Spec) -> bool:
    device = spec.hardware.device
    return (device.visible_bytes or 0) >= 70 * GIB and not device.name.startswith("A100")


def _weights(spec: Spec, shape: ModelShape, place: Place) -> int:
    tp = spec.parallel.tensor
    first, last = place.layers or (0, -1)
    stage_is_last = place.pp == spec.parallel.pipeline - 1
    embedding = shape.padded_vocab * shape.hidden // tp
    count = (last - first + 1) * shape.layer_parameters(tp)
    if place.pp == 0 or (stage_is_last and shape.tied):
        count += embedding
    if stage_is_last:
        count += shape.hidden + (0 if shape.tied else embedding)
    return count * DTYPE_BYTES[resolved_dtype(spec, shape)]


def _kv_per_token(spec: Spec, shape: ModelShape, place: Place) -> int:
    first, last = place.layers or (0, -1)
    name = spec.serve.kv_cache_dtype
    if name.startswith("fp8"):
        width = 1
    else:
        width = _CACHE_DTYPE_BYTES.get(name, DTYPE_BYTES[resolved_dtype(spec, shape)])
    heads = shape.kv_heads_per_rank(spec.parallel.tensor)
    return (last - first + 1) * 2 * heads * shape.head_size * width


def _activation(spec: Spec, shape: ModelShape, place: Place) -> tuple[int, int]:
    if spec.hardware.device.platform == "cpu":
        return round(_CPU_PROCESS[0]), round(_CPU_PROCESS[1])
    tp, world = spec.parallel.tensor, spec.parallel.world_size
    tokens = max_num_batched_tokens(spec, spec.serve.max_model_len or shape.positions)
    # Residual stream, its norm, and the widest of the projections, in the model's dtype.
    widest = 2 * shape.hidden + 2 * max(shape.intermediate, shape.hidden) / tp
    forward = tokens * widest * DTYPE_BYTES[resolved_dtype(spec, shape)]
    last = place.pp == spec.parallel.pipeline - 1
    sampler = _SAMPLER_BYTES * max_num_seqs(spec) * shape.vocab if last else 0.0
    peak = max(forward, sampler)
    outside = _OUTSIDE_TORCH["alone" if world == 1 else "grouped"]
    return (
        round(0.9 * peak + outside[0] + _CUDA_GRAPHS[0]),
        round(1.2 * peak + outside[1] + _CUDA_GRAPHS[1]),
    )
