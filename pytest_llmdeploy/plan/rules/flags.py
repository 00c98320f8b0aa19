"""Flags that have a range of their own, whatever else is given."""

from __future__ import annotations

from pytest_llmdeploy.facts import vllm_flags
from pytest_llmdeploy.plan.rules.given import Broken, number
from pytest_llmdeploy.spec import Spec, nearest

# Flag: least and most, as in vLLM's SchedulerConfig, CacheConfig, ParallelConfig and ModelConfig.
_RANGES: dict[str, tuple[float, float | None]] = {
    "max_num_active_seqs": (1, None),
    "max_num_scheduled_tokens": (1, None),
    "max_num_queued_reqs": (0, None),
    "max_num_queued_tokens": (0, None),
    "long_prefill_token_threshold": (0, None),
    "prefill_schedule_interval": (1, None),
    "stream_interval": (1, None),
    "max_logprobs": (-1, None),
    "nnodes": (1, None),
    "node_rank": (0, None),
    "data_parallel_size_local": (0, None),
    "data_parallel_rank": (0, None),
    "data_parallel_rpc_port": (1, 65_535),
    "max_parallel_loading_workers": (1, None),
    "prefix_match_unit": (1, None),
    "mamba_block_size": (1, None),
}


def flag_ranges(spec: Spec) -> Broken:
    for name in _RANGES.keys() & (spec.serve.model_extra or {}).keys():
        (least, most), value = _RANGES[name], number(spec, name)
        if value is not None and (value < least or (most is not None and value > most)):
            allowed = f"{least:,} or more" if most is None else f"{least:,} to {most:,}"
            yield f"serve.{name}", f"{name} {value:,.15g}: allowed is {allowed}"


def gpu_memory_utilization(spec: Spec) -> Broken:
    if not spec.serve.gpu_memory_utilization > 0:
        message = (
            f"gpu_memory_utilization {float(spec.serve.gpu_memory_utilization)} is not above 0"
        )
        yield "serve.gpu_memory_utilization", message


def watermark(spec: Spec) -> Broken:
    value = number(spec, "watermark")
    if value is not None and not 0 <= value < 1:
        yield "serve.watermark", f"watermark {value} is not from 0 to below 1"


def kv_cache_dtype(spec: Spec) -> Broken:
    name, known = spec.serve.kv_cache_dtype, vllm_flags()["kv_cache_dtype"].choices
    if name not in known:
        message = f"kv_cache_dtype {name!r} is not known: {nearest(name, known)}"
        yield "serve.kv_cache_dtype", message


RULES = (
    (flag_ranges, "create_engine_config"),
    (gpu_memory_utilization, "CacheConfig"),
    (watermark, "SchedulerConfig"),
    (kv_cache_dtype, "CacheConfig"),
)
