"""The rules that vLLM enforces: each one broken and barely kept, and what is said then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.facts import gpus
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.model import Violation
from pytest_llmdeploy.plan.rules import RULES, broken_rules
from pytest_llmdeploy.plan.shape import (
    ModelShape,
    ShapeUnknownError,
    shape_of,
)
from pytest_llmdeploy.spec import Spec
from tests.plan.deployments import CONFIG, made, tiny, with_config

Parts = Mapping[str, Any]

EXPERTS: Parts = {
    **CONFIG,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "head_dim": 16,
}
LATENT: Parts = {
    **CONFIG,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
TOWER: Parts = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {**CONFIG, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 64},
    "vision_config": {
        "hidden_size": 96,
        "intermediate_size": 100,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "image_size": 56,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 16,
}
WINDOW: Parts = {
    **CONFIG,
    "model_type": "gemma3_text",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
}
FEW_HEADS: Parts = {**CONFIG, "num_key_value_heads": 2}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
CPU = {"device": {"name": "cpu", "memory": "4GiB"}, "devices_per_node": 8}
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
LONG = {"name": "long", "input_tokens": 3904, "output_tokens": 193, "concurrency": 1}


@dataclass(frozen=True)
class Pair:
    """What breaks a rule and what barely keeps it, on a model."""

    broken: Parts
    kept: Parts
    config: Parts = field(default_factory=lambda: CONFIG)
    kept_config: Parts | None = None


def serve(broken: Parts, kept: Parts, config: Parts = CONFIG, **others: Any) -> Pair:
    """Two ways to serve."""
    return Pair({"serve": broken, **others}, {"serve": kept, **others}, config)


def parallel(broken: Parts, kept: Parts, config: Parts = CONFIG, **others: Any) -> Pair:
    """Two strategies."""
    return Pair({"parallel": broken, **others}, {"parallel": kept, **others}, config)


# By the rule; what follows a dash tells pairs of one rule apart.
PAIRS: Mapping[str, Pair] = {
    "devices": parallel({"tensor": 8, "pipeline": 2}, {"tensor": 4, "pipeline": 2}),
    "node_devices": serve(
        {}, {"nnodes": 2}, hardware={"nodes": 2}, parallel={"tensor": 8, "pipeline": 2}
    ),
    "node_copies": serve(
        {}, {"data_parallel_size_local": 1}, hardware={"nodes": 2}, parallel={"data": 2}
    ),
    "nodes": serve({"nnodes": 3}, {"nnodes": 4}, hardware={"nodes": 4}),
    "nodes-not-there": serve({"nnodes": 4}, {"nnodes": 2}, hardware={"nodes": 2}),
    "node_groups": serve(
        {"nnodes": 4, "data_parallel_size_local": 1},
        {"nnodes": 4, "data_parallel_size_local": 2},
        hardware={"nodes": 4},
        parallel={"tensor": 1, "data": 8},
    ),
    "local_copies": serve(
        {"data_parallel_size_local": 3},
        {"data_parallel_size_local": 2},
        parallel={"tensor": 4, "data": 2},
    ),
    "balancers-two": serve(
        {
            "data_parallel_external_lb": True,
            "data_parallel_hybrid_lb": True,
            "data_parallel_rank": 0,
        },
        {"data_parallel_external_lb": True, "data_parallel_rank": 0},
        EXPERTS,
        parallel={"tensor": 4, "data": 2},
    ),
    "balancers-no-rank": serve(
        {"data_parallel_external_lb": True},
        {"data_parallel_external_lb": True, "data_parallel_rank": 1},
        EXPERTS,
        parallel={"tensor": 4, "data": 2},
    ),
    "balancers-hybrid": serve(
        {"data_parallel_hybrid_lb": True},
        {"data_parallel_hybrid_lb": True, "data_parallel_size_local": 2},
        EXPERTS,
        parallel={"tensor": 4, "data": 2},
    ),
    "balancers-alone": serve(
        {"data_parallel_rank": 1, "data_parallel_size_local": 2},
        {"data_parallel_rank": 1, "data_parallel_size_local": 1},
        EXPERTS,
        parallel={"tensor": 4, "data": 2},
    ),
    "copy_rank": serve(
        {"data_parallel_rank": 2},
        {"data_parallel_rank": 1},
        EXPERTS,
        parallel={"tensor": 4, "data": 2},
    ),
    "copy_rank-one": parallel(
        {"tensor": 4}, {"tensor": 4, "data": 2}, EXPERTS, serve={"data_parallel_rank": 0}
    ),
    "copy_rank-balancer": parallel(
        {"tensor": 4},
        {"tensor": 4, "data": 2},
        EXPERTS,
        serve={"data_parallel_hybrid_lb": True, "data_parallel_size_local": 1},
    ),
    "executor": serve(
        {"nnodes": 2, "distributed_executor_backend": "ray"},
        {"nnodes": 2, "distributed_executor_backend": "mp"},
        hardware={"nodes": 2},
    ),
    "copies_backend": serve(
        {"nnodes": 2, "data_parallel_backend": "ray"},
        {"nnodes": 2, "data_parallel_backend": "mp"},
        hardware={"nodes": 2},
    ),
    "flag_ranges": serve({"stream_interval": 0}, {"stream_interval": 1}),
    "flag_ranges-most": serve({"data_parallel_rpc_port": 65536}, {"data_parallel_rpc_port": 65535}),
    "gpu_memory_utilization": serve({"gpu_memory_utilization": 0}, {"gpu_memory_utilization": 1}),
    "watermark": serve({"watermark": 1.0}, {"watermark": 0.99}),
    "kv_cache_dtype": serve({"kv_cache_dtype": "fp8_e4m4"}, {"kv_cache_dtype": "fp8_e4m3"}),
    "active_sequences": serve(
        {"max_num_seqs": 64, "max_num_active_seqs": 65},
        {"max_num_seqs": 64, "max_num_active_seqs": 64},
    ),
    "bfloat16": Pair(
        {"hardware": {"device": "T4"}, "model": {"dtype": "bfloat16"}},
        {"hardware": {"device": "T4"}, "model": {"dtype": "auto"}},
    ),
    "quantization_method": Pair(
        {"model": {"quantization": "bitsandbytes"}}, {"model": {"quantization": "fp8"}}
    ),
    "quantization_method-deprecated": Pair(
        {"model": {"quantization": "fbgemm_fp8"}},
        {
            "model": {"quantization": "fbgemm_fp8"},
            "serve": {"allow_deprecated_quantization": True},
        },
    ),
    "expert_balancing-off": serve(
        {"eplb_config": {"num_redundant_experts": 8}},
        {"eplb_config": {"num_redundant_experts": 0}},
        EXPERTS,
    ),
    "expert_balancing-cpu": serve(
        {"enable_eplb": True}, {"enable_eplb": False}, EXPERTS, hardware=CPU
    ),
    "expert_balancing-without-ep": parallel(
        {"expert": False}, {"expert": True}, EXPERTS, serve={"enable_eplb": True}
    ),
    "expert_balancing-one-rank": parallel(
        {"tensor": 1, "expert": True},
        {"tensor": 2, "expert": True},
        EXPERTS,
        serve={"enable_eplb": True},
    ),
    "thread_binding": serve(
        {"env": {BINDING: "0|1|2"}},
        {"env": {BINDING: "0-1|2-3"}},
        hardware=CPU,
        parallel={"tensor": 2},
    ),
    "thread_binding-copies": serve(
        {"env": {BINDING: "0|1|2"}},
        {"env": {BINDING: "0|1|2|3"}},
        hardware=CPU,
        parallel={"tensor": 2, "data": 2},
    ),
    "ray_on_cpu": serve(
        {"distributed_executor_backend": "ray"},
        {"distributed_executor_backend": "mp"},
        hardware=CPU,
    ),
    "decode_context": parallel(
        {"tensor": 8, "decode_context": 3}, {"tensor": 8, "decode_context": 4}, FEW_HEADS
    ),
    "decode_context-pcp": parallel(
        {"tensor": 4, "prefill_context": 2, "decode_context": 4},
        {"tensor": 4, "prefill_context": 2, "decode_context": 1},
        LATENT,
    ),
    "eager_pipeline": serve(
        {"enforce_eager": True},
        {"enforce_eager": False},
        hardware=CPU,
        parallel={"tensor": 1, "pipeline": 2},
    ),
    "experts_on_cpu": parallel(
        {"tensor": 2, "expert": True}, {"tensor": 2, "expert": False}, EXPERTS, hardware=CPU
    ),
    "contexts_on_cpu": parallel(
        {"tensor": 8, "decode_context": 2}, {"tensor": 8}, FEW_HEADS, hardware=CPU
    ),
    "prompts_on_cpu": parallel(
        {"tensor": 4, "prefill_context": 2}, {"tensor": 4}, LATENT, hardware=CPU
    ),
    "attention_heads": parallel({"tensor": 3}, {"tensor": 2}),
    "kv_heads": Pair(
        {}, {}, {**CONFIG, "num_key_value_heads": 3}, {**CONFIG, "num_key_value_heads": 4}
    ),
    "tensor_widths": Pair(
        {}, {}, {**CONFIG, "intermediate_size": 508}, {**CONFIG, "intermediate_size": 520}
    ),
    "tower_widths": serve({}, {"mm_encoder_tp_mode": "data"}, TOWER),
    "vocabulary": Pair(
        {"parallel": {"tensor": 3}},
        {"parallel": {"tensor": 3}},
        {**CONFIG, "num_attention_heads": 12, "num_key_value_heads": 3, "intermediate_size": 510},
        {
            **CONFIG,
            "num_attention_heads": 12,
            "num_key_value_heads": 3,
            "intermediate_size": 510,
            "vocab_size": 1089,
        },
    ),
    "stages": Pair(
        {"parallel": {"tensor": 1, "pipeline": 8}},
        {"parallel": {"tensor": 1, "pipeline": 8}},
        {**CONFIG, "num_hidden_layers": 7},
        CONFIG,
    ),
    "partition-sum": parallel(
        {"tensor": 4, "pipeline": 2, "layers": [4, 3]},
        {"tensor": 4, "pipeline": 2, "layers": [5, 3]},
    ),
    "partition-length": parallel(
        {"tensor": 4, "pipeline": 2, "layers": [4, 2, 2]},
        {"tensor": 4, "pipeline": 2, "layers": [7, 1]},
    ),
    "stages-empty": parallel(
        {"tensor": 4, "pipeline": 2, "layers": [8, 0]},
        {"tensor": 4, "pipeline": 2, "layers": [1, 7]},
    ),
    "partition-variable": serve(
        {"env": {"VLLM_PP_LAYER_PARTITION": "4,3"}},
        {"env": {"VLLM_PP_LAYER_PARTITION": "4, 4"}},
        parallel={"tensor": 4, "pipeline": 2},
    ),
    "partition-text": serve(
        {"env": {"VLLM_PP_LAYER_PARTITION": "4;4"}},
        {"env": {"VLLM_PP_LAYER_PARTITION": {"from_env": "LAYERS"}}},
        parallel={"tensor": 4, "pipeline": 2},
    ),
    "dense_experts": parallel({"expert": True}, {"expert": False}),
    "expert_widths": parallel(
        {"tensor": 4, "data": 2, "expert": False},
        {"tensor": 4, "data": 2, "expert": True},
        {**EXPERTS, "moe_intermediate_size": 68},
    ),
    "experts_for_ranks": Pair({}, {}, {**EXPERTS, "num_experts": 7}, {**EXPERTS, "num_experts": 8}),
    "even_experts": serve(
        {"enable_eplb": True, "eplb_config": '{"num_redundant_experts": 3}'},
        {"enable_eplb": True, "eplb_config": '{"num_redundant_experts": 8}'},
        EXPERTS,
        parallel={"expert": True},
    ),
    "outside_balancer": Pair(
        {"parallel": {"tensor": 4, "data": 2}, "serve": {"data_parallel_rank": 1}},
        {"parallel": {"tensor": 4, "data": 2}, "serve": {"data_parallel_rank": 1}},
        CONFIG,
        EXPERTS,
    ),
    "decode_context_heads-ranks": Pair(
        {"parallel": {"decode_context": 2}},
        {"parallel": {"decode_context": 2}},
        CONFIG,
        {**CONFIG, "num_key_value_heads": 4},
    ),
    "decode_context_heads-copies": parallel(
        {"decode_context": 8}, {"decode_context": 4}, FEW_HEADS
    ),
    "decode_context_heads-query": parallel(
        {"tensor": 12, "decode_context": 4},
        {"tensor": 12, "decode_context": 6},
        {
            **FEW_HEADS,
            "num_attention_heads": 12,
            "head_dim": 16,
            "intermediate_size": 516,
            "vocab_size": 1100,
        },
        hardware={"devices_per_node": 12},
    ),
    "decode_context_window": serve(
        {}, {"disable_hybrid_kv_cache_manager": True}, WINDOW, parallel={"decode_context": 2}
    ),
    "decode_context_blocks": serve(
        {"block_size": 32, "cp_kv_cache_interleave_size": 24},
        {"block_size": 48, "cp_kv_cache_interleave_size": 24},
        FEW_HEADS,
        parallel={"decode_context": 2},
    ),
    "prefill_context": Pair(
        {"parallel": {"tensor": 4, "prefill_context": 2}},
        {"parallel": {"tensor": 4, "prefill_context": 2}},
        CONFIG,
        LATENT,
    ),
    "both_contexts": parallel(
        {"tensor": 4, "prefill_context": 2, "decode_context": 2},
        {"tensor": 8, "prefill_context": 1, "decode_context": 2},
        LATENT,
    ),
    "block_shards": parallel({"tensor": 4}, {"tensor": 2}, {**CONFIG, "quantization_config": FP8}),
    "block_shards-latent": parallel(
        {"tensor": 8}, {"tensor": 2}, {**LATENT, "quantization_config": FP8}
    ),
    "expert_blocks": parallel(
        {"tensor": 2, "expert": False},
        {"tensor": 2, "expert": True},
        {**EXPERTS, "moe_intermediate_size": 288, "quantization_config": FP8},
    ),
    "group_shards": parallel({"tensor": 8}, {"tensor": 4}, {**CONFIG, "quantization_config": AWQ}),
    "positions": serve({"max_model_len": 4097}, {"max_model_len": 4096}),
    "positions-allowed": serve(
        {"max_model_len": 4097, "env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}},
        {"max_model_len": 4097, "env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}},
    ),
    "batched_sequences": serve(
        {"max_num_batched_tokens": 64, "max_num_seqs": 65},
        {"max_num_batched_tokens": 64, "max_num_seqs": 64},
    ),
    "batched_sequences-default": serve({"max_num_seqs": 8193}, {"max_num_seqs": 8192}),
    "batched_prompt": serve(
        {"max_num_batched_tokens": 2048, "enable_chunked_prefill": False},
        {"max_num_batched_tokens": 4096, "enable_chunked_prefill": False},
    ),
    "long_prefills": serve(
        {"long_prefill_token_threshold": 4097}, {"long_prefill_token_threshold": 4096}
    ),
    "block_override": serve({"num_gpu_blocks_override": 256}, {"num_gpu_blocks_override": 257}),
    "request_lengths": Pair({"workloads": [LONG]}, {"workloads": [{**LONG, "output_tokens": 192}]}),
    "float16": Pair({"model": {"dtype": "float16"}}, {"model": {"dtype": "float32"}}, WINDOW),
    "block_size": serve({"block_size": 24}, {"block_size": 48}),
    "block_size-cpu": serve({"block_size": 48}, {"block_size": 96}, hardware=CPU),
    "kv_cache_format-latent": serve(
        {"kv_cache_dtype": "fp8_e5m2"}, {"kv_cache_dtype": "fp8_e4m3"}, LATENT
    ),
    "kv_cache_format-plain": serve(
        {"kv_cache_dtype": "fp8_ds_mla"}, {"kv_cache_dtype": "fp8_e5m2"}
    ),
    "quantized_dtype": Pair(
        {"model": {"dtype": "float32"}, "parallel": {"tensor": 4}},
        {"model": {"dtype": "float16"}, "parallel": {"tensor": 4}},
        {**CONFIG, "quantization_config": AWQ},
    ),
    "quantized_device": Pair(
        {"hardware": {"device": "V100"}, "model": {"dtype": "auto"}, "parallel": {"tensor": 4}},
        {"hardware": {"device": "T4"}, "model": {"dtype": "auto"}, "parallel": {"tensor": 4}},
        {**CONFIG, "quantization_config": AWQ},
    ),
}


@pytest.fixture(autouse=True)
def _old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with two GPUs that vLLM runs on, and not everything else does."""
    known = gpus()["L40S-48GB"]
    old = {
        "T4": replace(known, name="T4", compute_capability=(7, 5)),
        "V100": replace(known, name="V100", compute_capability=(7, 0)),
    }
    monkeypatch.setattr("pytest_llmdeploy.spec.model.gpus", lambda: {**gpus(), **old})


def violations(spec: Spec) -> list[Violation]:
    """What is broken; a quantization that nobody knows leaves the shape unknown."""
    try:
        shape: ModelShape | None = shape_of(spec)
    except ShapeUnknownError:
        shape = None
    return list(broken_rules(spec, shape))


def the_spec(path: Path, parts: Parts, config: Parts) -> Spec:
    """The small model on 8 GPUs, with TP 8 and something changed."""
    return with_config(path / "config.json", config, **parts)


@pytest.mark.parametrize("name", PAIRS)
def test_broken_rule(name: str, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    """The violation says what is wrong at which key, and which function of vLLM refuses it."""
    pair, rule = PAIRS[name], name.partition("-")[0]
    found = violations(the_spec(tmp_path, pair.broken, pair.config))
    assert [f"{v.key}: {v}" for v in found if v.rule == rule] == snapshot
    assert {v.rule for v in found} >= {rule}


@pytest.mark.parametrize("name", PAIRS)
def test_kept_rule(name: str, tmp_path: Path) -> None:
    """What is just allowed breaks nothing at all."""
    pair = PAIRS[name]
    found = violations(the_spec(tmp_path, pair.kept, pair.kept_config or pair.config))
    assert list(map(str, found)) == []


def test_every_rule_has_a_pair() -> None:
    """No rule is without a test that breaks it and one that keeps it."""
    assert {name.partition("-")[0] for name in PAIRS} == {rule.__name__ for rule, _ in RULES}


@pytest.mark.parametrize(
    ("rule", "spec"),
    [
        ("weights_fit", made(parallel={"tensor": 1})),
        ("kv_cache_fits", tiny(serve={"max_model_len": 2048, "kv_cache_memory_bytes": "2MiB"})),
    ],
    ids=["weights_fit", "kv_cache_fits"],
)
def test_what_does_not_fit(rule: str, spec: Spec, snapshot: SnapshotAssertion) -> None:
    """Memory that can't suffice is a violation too, with the bytes that are missing."""
    found = plan(spec)
    assert [v.rule for v in found.violations] == [rule]
    assert found.refusal == snapshot


def test_every_violation_is_listed() -> None:
    """One fault does not hide another."""
    found = plan(made(parallel={"tensor": 3, "expert": True}, serve={"max_model_len": 9000}))
    rules = {violation.rule for violation in found.violations}
    assert rules >= {"attention_heads", "kv_heads", "tensor_widths", "dense_experts", "positions"}
