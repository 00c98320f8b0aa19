"""The rules of the plan against vLLM itself: what it refuses, they name, and nothing else.

Every case is one spec. Its flags go through vLLM's own parser and configuration, then its model is
made without memory for weights, stage by stage, as the first rank of each would make it; all in
one process and without starting an engine. GPUs are declared, but this vLLM has none, so what only
a GPU decides is not judged here: the number of devices, compute capabilities, attention kernels
and their KV cache formats, EPLB beyond its refusal on the CPU, 4-bit kernels. Nor is what takes a
running engine: Ray, nodes that are not there, and what the first request kills on the CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.plan.rules import broken_rules
from pytest_llmdeploy.plan.rules.hardware import LATENT_CACHE
from pytest_llmdeploy.plan.rules.quantization import METHODS, ONLINE
from pytest_llmdeploy.plan.shape import ShapeUnknownError, shape_of
from pytest_llmdeploy.serving.command import environment, flags
from pytest_llmdeploy.spec import Spec
from tests.live.refusing_vllm import BINDING
from tests.specs import REPOSITORY, TINY_MODEL

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 259,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
EXPERTS = {**LLAMA, "num_key_value_heads": 4, "num_experts_per_tok": 2, "head_dim": 32}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA,
    "mixtral": {
        **EXPERTS,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
    },
    "qwen3_moe": {
        **EXPERTS,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "moe_intermediate_size": 96,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    },
    "deepseek_v3": {
        **LLAMA,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": 12,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
    "gemma3_text": {
        **LLAMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "sliding_window": 128,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10000.0,
    },
}

CPU = {"device": {"name": "cpu", "memory": "4GiB"}, "devices_per_node": 16}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 128,
            },
        }
    },
}
THIRDS = {"vocab_size": 190, "num_key_value_heads": 3}


def case(family: str, config: Mapping[str, Any] | None = None, /, **spec: Any) -> dict[str, Any]:
    """A tiny model with keys of its config changed, and the sections of a spec."""
    return {"config": {**MODELS[family], **(config or {})}, "spec": spec}


# What is refused, with a word of vLLM's reason and one of ours. Where vLLM asserts without a word,
# its reason is the place in the code.
REFUSED: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "heads": (case("llama", parallel={"tensor": 5}), "attention heads", "attention heads"),
    "kv-heads": (
        case("llama", {"num_key_value_heads": 3}, parallel={"tensor": 4}),
        "LlamaAttention",
        "KV heads",
    ),
    "mlp-width": (
        case("llama", {"intermediate_size": 770}, parallel={"tensor": 4}),
        "ColumnParallelLinear",
        "770",
    ),
    "vocabulary": (
        case("llama", {"num_key_value_heads": 3}, parallel={"tensor": 3}),
        "320 is not divisible by 3",
        "vocabulary",
    ),
    "partition-length": (
        case("llama", parallel={"pipeline": 2, "layers": [1, 1, 2]}),
        "pp_size",
        "layers on 2 stages",
    ),
    "partition-sum": (
        case("llama", parallel={"pipeline": 2, "layers": [2, 3]}),
        "num_hidden_layers",
        "[2, 3]",
    ),
    "partition-text": (
        case("llama", parallel={"pipeline": 2}, serve={"env": {"VLLM_PP_LAYER_PARTITION": "2;2"}}),
        "Invalid partition string",
        "not a list of numbers",
    ),
    "dense-experts": (
        case("llama", parallel={"tensor": 2, "expert": True}),
        "experts in the model",
        "dense model",
    ),
    "expert-width": (
        case("qwen3_moe", {"moe_intermediate_size": 100}, parallel={"tensor": 4, "data": 2}),
        "FusedMoEConfig",
        "splits every expert 8 ways",
    ),
    "experts-for-ranks": (
        case("qwen3_moe", {"num_experts": 2}, parallel={"tensor": 4}),
        "number of experts 2",
        "2 experts",
    ),
    "eplb-on-cpu": (
        case("mixtral", hardware=CPU, parallel={"tensor": 2}, serve={"enable_eplb": True}),
        "load balancing is only supported",
        "EPLB is for GPUs",
    ),
    "redundant-experts": (
        case("mixtral", serve={"eplb_config": {"num_redundant_experts": 4}}),
        "num_redundant_experts",
        "num_redundant_experts",
    ),
    "dcp-and-tp": (
        case("llama", parallel={"tensor": 4, "decode_context": 3}),
        "divisible by dcp_size",
        "DCP 3",
    ),
    "dcp-and-pcp": (
        case("deepseek_v3", parallel={"tensor": 4, "prefill_context": 2, "decode_context": 4}),
        "valid DCP sizes",
        "1, 2 or 8",
    ),
    "dcp-few-ranks": (
        case("llama", parallel={"tensor": 2, "decode_context": 2}),
        "greater than the model's total",
        "must be greater than the 2 KV heads",
    ),
    "dcp-few-copies": (
        case("llama", parallel={"tensor": 4, "decode_context": 4}),
        "exceeds the maximum",
        "only 2 copies",
    ),
    "dcp-query-heads": (
        case("llama", parallel={"tensor": 12, "decode_context": 4}),
        "query heads per KV head",
        "query heads per KV head",
    ),
    "dcp-window": (
        case("gemma3_text", parallel={"tensor": 4, "decode_context": 2}),
        "sliding window",
        "sliding window",
    ),
    "dcp-interleave": (
        case(
            "llama",
            parallel={"tensor": 4, "decode_context": 2},
            serve={"block_size": 32, "cp_kv_cache_interleave_size": 24},
        ),
        "cp_kv_cache_interleave_size",
        "cp_kv_cache_interleave_size",
    ),
    "dcp-on-cpu": (
        case("llama", hardware=CPU, parallel={"tensor": 4, "decode_context": 2}),
        "softmax LSE",
        "DCP 2",
    ),
    "pcp-on-cpu": (
        case("deepseek_v3", hardware=CPU, parallel={"prefill_context": 2}),
        "does not support: prefill context parallel",
        "PCP 2",
    ),
    "fp8-blocks": (
        case("llama", {"quantization_config": FP8}, parallel={"tensor": 2}),
        "not divisible by weight quantization block_k",
        "o_proj are not split into blocks of 128",
    ),
    "fp8-blocks-of-mla": (
        case("deepseek_v3", {"quantization_config": FP8}, parallel={"tensor": 4}),
        "not divisible by weight quantization block_n",
        "q_b_proj are not split into blocks of 128",
    ),
    "fp8-experts": (
        case("qwen3_moe", {"quantization_config": FP8, "moe_intermediate_size": 80}),
        "not divisible by weight quantization block_n",
        "an expert split 1 ways",
    ),
    "int4-groups": (
        case("llama", {"quantization_config": INT4}, parallel={"tensor": 2}),
        "shards that are not a whole number of quant groups",
        "o_proj are not split into groups of 128",
    ),
    "positions": (
        case("llama", serve={"max_model_len": 2049}),
        "User-specified max_model_len",
        "2,048",
    ),
    "sequences": (
        case("llama", serve={"max_num_batched_tokens": 64, "max_num_seqs": 65}),
        "max_num_seqs",
        "max_num_seqs 65",
    ),
    "whole-prompts": (
        case("llama", serve={"max_num_batched_tokens": 2047, "enable_chunked_prefill": False}),
        "smaller than max_model_len",
        "without chunked prefill",
    ),
    "active-sequences": (
        case("llama", serve={"max_num_seqs": 64, "max_num_active_seqs": 65}),
        "max_num_active_seqs",
        "max_num_active_seqs 65",
    ),
    "long-prefills": (
        case("llama", serve={"long_prefill_token_threshold": 2049}),
        "long_prefill_token_threshold",
        "2,049",
    ),
    "nodes": (
        case("llama", hardware={"nodes": 3}, parallel={"tensor": 4}, serve={"nnodes": 3}),
        "evenly divide",
        "does not divide the 4 ranks",
    ),
    "node-groups": (
        case(
            "llama",
            hardware={"nodes": 4},
            parallel={"data": 8},
            serve={"nnodes": 4, "data_parallel_size_local": 1},
        ),
        "data parallel node groups",
        "8 groups",
    ),
    "local-copies": (
        case("llama", parallel={"data": 2}, serve={"data_parallel_size_local": 3}),
        "data_parallel_size_local",
        "greater than DP 2",
    ),
    "two-balancers": (
        case(
            "mixtral",
            parallel={"data": 2},
            serve={"data_parallel_external_lb": True, "data_parallel_hybrid_lb": True},
        ),
        "cannot be enabled together",
        "exclude each other",
    ),
    "balancer-without-rank": (
        case("mixtral", parallel={"data": 2}, serve={"data_parallel_external_lb": True}),
        "requires a data-parallel rank",
        "needs a data_parallel_rank",
    ),
    "balancer-without-count": (
        case("mixtral", parallel={"data": 2}, serve={"data_parallel_hybrid_lb": True}),
        "requires `--data-parallel-size-local`",
        "needs a data_parallel_size_local",
    ),
    "rank-of-several-copies": (
        case(
            "mixtral",
            parallel={"data": 2},
            serve={"data_parallel_rank": 1, "data_parallel_size_local": 2},
        ),
        "requires `--data-parallel-size-local 1`",
        "is alone",
    ),
    "rank-of-one-copy": (
        case("mixtral", serve={"data_parallel_rank": 0}),
        "data_parallel_size > 1",
        "not for DP 1",
    ),
    "rank-of-no-copy": (
        case("mixtral", parallel={"data": 2}, serve={"data_parallel_rank": 2}),
        "in the range",
        "not for DP 2",
    ),
    "dense-copies-outside": (
        case("llama", parallel={"data": 2}, serve={"data_parallel_rank": 1}),
        "Non-MoE models",
        "servers of their own",
    ),
    "float16": (
        case("gemma3_text", model={"dtype": "float16"}),
        "does not support float16",
        "unstable",
    ),
    "quantization-name": (
        case("llama", model={"quantization": "bitsandbytes"}),
        "quantization",
        "not known",
    ),
    "quantization-deprecated": (
        case("llama", model={"quantization": "fbgemm_fp8"}),
        "deprecated",
        "deprecated",
    ),
    "quantization-dtype": (
        case("llama", {"quantization_config": FP8}, model={"dtype": "float32"}),
        "not supported for quantization",
        "calculates in",
    ),
    "kv-cache-dtype": (
        case("llama", serve={"kv_cache_dtype": "fp9"}),
        "invalid choice",
        "not known",
    ),
    "kv-cache-of-mla": (
        case("deepseek_v3", serve={"kv_cache_dtype": "nvfp4"}),
        "not supported with MLA",
        "has MLA",
    ),
    "utilization": (
        case("llama", serve={"gpu_memory_utilization": 0}),
        "gpu_memory_utilization",
        "not above 0",
    ),
    "range": (case("llama", serve={"stream_interval": 0}), "stream_interval", "1 or more"),
    "watermark": (case("llama", serve={"watermark": 1}), "watermark", "below 1"),
    "thread-binding": (
        case("llama", hardware=CPU, parallel={"tensor": 2}, serve={"env": {BINDING: "0"}}),
        "local world size",
        "1 lists of cores for 2 ranks",
    ),
    "block-size-on-cpu": (
        case("llama", hardware=CPU, serve={"block_size": 48}),
        "No common block size",
        "multiples of 32",
    ),
}

# What is allowed, mostly next to what is not.
ALLOWED: Mapping[str, dict[str, Any]] = {
    "plain": case("llama"),
    "heads": case("llama", parallel={"tensor": 4}),
    "three-ranks": case("llama", THIRDS, parallel={"tensor": 3}),
    "replicated-heads": case("llama", {"num_key_value_heads": 1}, parallel={"tensor": 4}),
    "partition": case("llama", parallel={"pipeline": 2, "layers": [1, 3]}),
    "uneven-stages": case("llama", parallel={"pipeline": 3}),
    "copies-of-a-dense-model": case("llama", parallel={"data": 3}),
    "split-experts": case("qwen3_moe", parallel={"tensor": 4, "data": 2}),
    "dealt-experts": case(
        "qwen3_moe",
        {"moe_intermediate_size": 100},
        parallel={"tensor": 4, "data": 2, "expert": True},
    ),
    "few-experts-elsewhere": case("mixtral", {"num_local_experts": 2}, parallel={"tensor": 4}),
    "more-ranks-than-experts": case("qwen3_moe", parallel={"tensor": 4, "data": 2, "expert": True}),
    "dcp": case("llama", parallel={"tensor": 4, "decode_context": 2}),
    "dcp-of-mla": case("deepseek_v3", parallel={"tensor": 4, "decode_context": 4}),
    "dcp-interleave": case(
        "llama",
        parallel={"tensor": 4, "decode_context": 2},
        serve={"block_size": 32, "cp_kv_cache_interleave_size": 16},
    ),
    "mla": case("deepseek_v3", parallel={"tensor": 4}),
    "window": case("gemma3_text", parallel={"tensor": 4}),
    "positions": case("llama", serve={"max_model_len": 2048}),
    "more-positions": case(
        "llama", serve={"max_model_len": 4096, "env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "true"}}
    ),
    "sequences": case("llama", serve={"max_num_batched_tokens": 64, "max_num_seqs": 64}),
    "whole-prompts": case(
        "llama", serve={"max_num_batched_tokens": 2048, "enable_chunked_prefill": False}
    ),
    "whole-prompts-by-default": case("llama", serve={"enable_chunked_prefill": False}),
    "active-sequences": case("llama", serve={"max_num_seqs": 64, "max_num_active_seqs": 64}),
    "long-prefills": case("llama", serve={"long_prefill_token_threshold": 2048}),
    "nodes": case("llama", hardware={"nodes": 2}, parallel={"tensor": 4}, serve={"nnodes": 2}),
    "nodes-of-copies": case(
        "llama", hardware={"nodes": 2}, parallel={"data": 4}, serve={"nnodes": 2}
    ),
    "local-copies": case("mixtral", parallel={"data": 2}, serve={"data_parallel_size_local": 2}),
    "outside-balancer": case(
        "mixtral",
        parallel={"data": 2},
        serve={"data_parallel_external_lb": True, "data_parallel_rank": 1},
    ),
    "hybrid-balancer": case(
        "mixtral",
        parallel={"data": 2},
        serve={"data_parallel_hybrid_lb": True, "data_parallel_size_local": 2},
    ),
    "bfloat16": case("gemma3_text", model={"dtype": "bfloat16"}),
    "fp8-blocks": case("llama", {**THIRDS, "quantization_config": FP8}, parallel={"tensor": 3}),
    "fp8-blocks-of-mla": case(
        "deepseek_v3",
        {"vocab_size": 190, "quantization_config": FP8, "first_k_dense_replace": 4},
        parallel={"tensor": 3},
    ),
    "fp8-experts": case("qwen3_moe", {"quantization_config": FP8}),
    "int4-groups": case("llama", {**THIRDS, "quantization_config": INT4}, parallel={"tensor": 3}),
    "few-experts-of-deepseek": case("deepseek_v3", {"n_routed_experts": 2}, parallel={"tensor": 4}),
    "kv-cache-of-mla": case("deepseek_v3", serve={"kv_cache_dtype": "fp8"}),
    "utilization": case("llama", serve={"gpu_memory_utilization": 1}),
    "thread-binding": case(
        "llama", hardware=CPU, parallel={"tensor": 2}, serve={"env": {BINDING: "0|1"}}
    ),
    "block-size-on-cpu": case("llama", hardware=CPU, serve={"block_size": 96}),
}


def made(folder: Path, parts: Mapping[str, Any]) -> Spec:
    """The spec of a case, with its model's config.json and tokenizer in `folder`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(parts["config"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_MODEL / name, folder)
    sections = dict(parts["spec"])
    model = {"id": str(folder), **sections.pop("model", {})}
    hardware = {"device": "H100-SXM-80GB", "devices_per_node": 64, **sections.pop("hardware", {})}
    return Spec.model_validate({"version": 1, "model": model, "hardware": hardware, **sections})


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Spec]:
    """The specs of all cases, by name."""
    cases = {f"refused-{name}": parts for name, (parts, _, _) in REFUSED.items()}
    cases |= {f"allowed-{name}": parts for name, parts in ALLOWED.items()}
    folder = tmp_path_factory.mktemp("models")
    return {name: made(folder / name, parts) for name, parts in cases.items()}


@pytest.fixture(scope="module")
def answers(specs: Mapping[str, Spec]) -> Mapping[str, Any]:
    """What vLLM says against each case, nothing where it accepts it; and its tables."""
    questions = [
        {
            "name": name,
            "argv": [f"--model={spec.model.id}", *flags(spec)],
            "environment": dict(environment(spec)),
            "on_cpu": spec.hardware.device.platform == "cpu",
        }
        for name, spec in specs.items()
    ]
    architectures = [name for config in MODELS.values() for name in config["architectures"]]
    vllm = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.live.refusing_vllm"],
        input=json.dumps({"architectures": architectures, "questions": questions}),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=240,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "CRITICAL",
        },
    )
    assert vllm.returncode == 0, vllm.stderr[-4000:]
    found: Mapping[str, Any] = json.loads(vllm.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def refusals(answers: Mapping[str, Any]) -> Mapping[str, str]:
    """What vLLM says against each case."""
    found: Mapping[str, str] = answers["refusals"]
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(name: str, specs: Mapping[str, Spec], refusals: Mapping[str, str]) -> None:
    """What vLLM refuses breaks a rule, for the same reason."""
    spec, (_, theirs, ours) = specs[f"refused-{name}"], REFUSED[name]
    broken = texts(spec)
    assert theirs in refusals[f"refused-{name}"]
    assert any(ours in text for text in broken), broken


@pytest.mark.parametrize("name", ALLOWED)
def test_both_allow(name: str, specs: Mapping[str, Spec], refusals: Mapping[str, str]) -> None:
    """What vLLM accepts breaks no rule."""
    spec = specs[f"allowed-{name}"]
    assert refusals[f"allowed-{name}"] == ""
    assert texts(spec) == []


def test_quantization_methods_are_vllms(answers: Mapping[str, Any]) -> None:
    """Every method that vLLM knows, with the least capability and the dtypes that it takes."""
    ours = {name: [needs.capability, sorted(needs.dtypes)] for name, needs in METHODS.items()}
    # Asked of a checkpoint, these are what vLLM does as it loads, not what they are called after.
    for name in ONLINE:
        assert ours.pop(name)
    assert answers["tables"]["quantization"] == ours


def test_latent_cache_formats_are_vllms(answers: Mapping[str, Any]) -> None:
    """What the kernels of MLA that can be loaded here read from the KV cache."""
    assert answers["tables"]["latent"] == sorted(LATENT_CACHE)


def test_only_latent_attention_splits_prompts(answers: Mapping[str, Any]) -> None:
    """PCP is for MLA: other attention says of itself that it can't."""
    assert answers["tables"]["pcp"] == [False, True]


def texts(spec: Spec) -> list[str]:
    """What the rules say; a quantization that nobody knows leaves the shape unknown."""
    try:
        shape = shape_of(spec)
    except ShapeUnknownError:
        shape = None
    return [str(violation) for violation in broken_rules(spec, shape)]
