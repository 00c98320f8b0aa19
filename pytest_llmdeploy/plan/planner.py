"""`plan(spec)`: total for a valid spec, and without network, GPU or clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pytest_llmdeploy.plan.layout import Place, partition, places
from pytest_llmdeploy.plan.memory import (
    MemoryUse,
    block_size,
    memory_use,
)
from pytest_llmdeploy.plan.model import KvCache, Plan, Rank, Violation
from pytest_llmdeploy.plan.rules import broken_rules
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_of
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import show


def plan(spec: Spec) -> Plan:
    """The plan of `spec`; what can't be known or can't work is said in it, never raised."""
    shape, unknown = _shape(spec)
    violations = list(broken_rules(spec, shape))
    stages = _stages(spec, shape)
    if shape is None or violations or stages is None:
        ranks = tuple(_bare(place) for place in places(spec, stages))
        return _plan(spec, shape, ranks, violations, stages=stages, unknown=unknown)
    length = spec.serve.max_model_len or shape.positions
    uses = [(place, memory_use(spec, shape, place)) for place in places(spec, stages)]
    kv_cache = _kv_cache(spec, length, [use for _, use in uses])
    violations += _memory_violations(length, uses, kv_cache)
    if violations:
        ranks = tuple(_bare(place) for place, _ in uses)
    else:
        ranks = tuple(_rank(spec, place, use, kv_cache) for place, use in uses)
    return _plan(spec, shape, ranks, violations, stages=stages, kv_cache=kv_cache)


def _plan(
    spec: Spec,
    shape: ModelShape | None,
    ranks: tuple[Rank, ...],
    violations: Sequence[Violation],
    *,
    stages: tuple[int, ...] | None,
    kv_cache: KvCache | None = None,
    unknown: str = "",
) -> Plan:
    return Plan(
        devices=spec.parallel.devices,
        available=spec.hardware.devices,
        parameters=shape.parameters if shape else None,
        ranks=ranks,
        violations=tuple(violations),
        kv_cache=kv_cache,
        max_model_len=spec.serve.max_model_len or (shape.positions if shape else None),
        stage_layers=stages,
        shape=shape,
        unknown=unknown,
    )


def _shape(spec: Spec) -> tuple[ModelShape | None, str]:
    try:
        return shape_of(spec), ""
    except ShapeUnknownError as error:
        return None, str(error)


def _stages(spec: Spec, shape: ModelShape | None) -> tuple[int, ...] | None:
    if spec.parallel.layers is not None:
        return spec.parallel.layers
    return partition(shape.layers, spec.parallel.pipeline) if shape else None


def _kv_cache(spec: Spec, length: int, uses: Sequence[MemoryUse]) -> KvCache | None:
    """VLLM gives every rank the blocks of the one that has the fewest
    (v1/core/kv_cache_utils.py: get_kv_cache_configs).
    """
    size = block_size(spec)
    pools = [
        tuple(available // (use.kv_per_token * size) for available in use.kv_available)
        for use in uses
        if use.kv_available is not None and use.kv_per_token
    ]
    if not pools:
        return None
    low, high = min(pool[0] for pool in pools), min(pool[-1] for pool in pools)
    concurrency = (low + high) // 2 / -(-length // size)
    return KvCache(int(concurrency * length), concurrency, size, (low, high))


def _memory_violations(
    length: int, uses: Sequence[tuple[Place, MemoryUse]], kv_cache: KvCache | None
) -> list[Violation]:
    """What can't fit even if everything that is only known in ranges turns out small."""
    found = []
    place, use = max(uses, key=lambda item: item[1].weights + item[1].activation[0])
    if use.requested is not None and use.weights + use.activation[0] > use.requested:
        message = (
            f"rank {place.rank}: {show(use.weights, 'B')} of weights do not fit into the "
            f"{show(use.requested, 'B')} that gpu_memory_utilization gives vLLM"
        )
        found.append(Violation("weights_fit", "hardware", message, "determine_available_memory"))
    elif kv_cache and kv_cache.blocks_range[1] - 1 < -(-length // kv_cache.block_size):
        message = (
            f"the KV cache holds at most {kv_cache.blocks_range[1] * kv_cache.block_size:,} "
            f"tokens, max_model_len is {length:,}"
        )
        source = "check_enough_kv_cache_memory"
        found.append(Violation("kv_cache_fits", "serve.max_model_len", message, source))
    return found


def _bare(place: Place) -> Rank:
    return Rank(**asdict(place))


def _rank(spec: Spec, place: Place, use: MemoryUse, kv_cache: KvCache | None) -> Rank:
    size = block_size(spec)
    total = spec.hardware.device.total_bytes
    used = use.requested
    if spec.hardware.device.platform == "cpu" and use.kv_available:
        used = use.weights + use.activation[1] + use.kv_available[1]
    blocks = sum(kv_cache.blocks_range) // 2 if kv_cache else None
    return Rank(
        **asdict(place),
        weights_bytes=use.weights,
        kv_bytes_per_token=use.kv_per_token,
        kv_blocks=blocks,
        kv_tokens=blocks * size if blocks is not None else None,
        activation_bytes=use.activation,
        used_bytes=used,
        headroom_bytes=total - used if total is not None and used is not None else None,
    )
