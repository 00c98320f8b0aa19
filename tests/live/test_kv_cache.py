"""The plan's KV cache against the one that vLLM lays out, to the token."""

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

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.serving.command import flags
from pytest_llmdeploy.spec import Spec
from tests.live.engine_cores import ENVIRONMENT
from tests.specs import REPOSITORY

TOKENIZER = REPOSITORY / "specs" / "models" / "tiny-llama"
LLAMA: Mapping[str, Any] = json.loads((TOKENIZER / "config.json").read_text())
DENSE: Mapping[str, Any] = {
    **LLAMA,
    "num_hidden_layers": 6,
    "max_position_embeddings": 2048,
    "sliding_window": None,
}
GEMMA = {
    **{key: DENSE[key] for key in ("vocab_size", "hidden_size", "intermediate_size")},
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "sliding_window": 256,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2
    + ["sliding_attention"],
}
MIXTRAL = {
    **DENSE,
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
QWEN3_MOE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "head_dim": 64,
}
DEEPSEEK = {
    **{key: DENSE[key] for key in ("vocab_size", "hidden_size", "intermediate_size")},
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "n_group": None,
    "topk_group": None,
    "rope_theta": 10000.0,
}
SLIDING = {
    **DENSE,
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": 512,
}

# Configuration, and what differs from TP 1, 2,048 tokens, 64 MiB, float32.
CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "GQA": (DENSE, {}),
    "MQA": ({**DENSE, "num_key_value_heads": 1}, {}),
    "MHA, bfloat16": (
        {**DENSE, "num_key_value_heads": 4},
        {"model": {"dtype": "bfloat16"}},
    ),
    "blocks of 32": (DENSE, {"serve": {"block_size": 32, "max_model_len": 1999}}),
    "sliding window": (SLIDING, {"serve": {"max_num_batched_tokens": 256}}),
    "hybrid": (GEMMA, {"serve": {"max_num_batched_tokens": 128}}),
    "hybrid, manager off": (
        GEMMA,
        {"serve": {"disable_hybrid_kv_cache_manager": True}},
    ),
    "MoE": (MIXTRAL, {}),
    "MoE of Qwen": (QWEN3_MOE, {}),
    "MLA": (DEEPSEEK, {}),
    "TP 2, replicated": (
        {**DENSE, "num_key_value_heads": 1},
        {"parallel": {"tensor": 2}},
    ),
    "PP 2, uneven": (
        {**DENSE, "num_hidden_layers": 5},
        {"parallel": {"pipeline": 2}},
    ),
    "PP 2, hybrid": (
        GEMMA,
        {"serve": {"max_num_batched_tokens": 128}, "parallel": {"pipeline": 2}},
    ),
}


def deployment(folder: Path, changes: Mapping[str, Any]) -> Spec:
    """A deployment of the model in `folder` on the CPU."""
    serve = {
        "load_format": "dummy",
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "kv_cache_memory_bytes": "64MiB",
    }
    model = {"id": str(folder), "config": str(folder), "dtype": "float32"}
    return Spec.model_validate(
        {
            "version": 1,
            "name": "s",
            "model": {**model, **changes.get("model", {})},
            "hardware": {"device": {"name": "cpu", "memory": "4GiB"}, "devices_per_node": 2},
            "parallel": changes.get("parallel", {}),
            "serve": {**serve, **changes.get("serve", {})},
        }
    )


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Spec]:
    """Every case as a spec, with its model's folder."""
    made = {}
    for index, (name, (config, changes)) in enumerate(CASES.items()):
        folder = tmp_path_factory.mktemp(f"model{index}")
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, folder)
        made[name] = deployment(folder, changes)
    return made


@pytest.fixture(scope="module")
def laid_out(
    specs: Mapping[str, Spec], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Mapping[str, Any]]:
    """What vLLM made of every case; one process starts all engines, in eager mode: it is quicker,
    and lays out the same.
    """
    cases = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    lines = [
        json.dumps(
            {"name": name, "argv": [f"--model={spec.model.id}", "--enforce-eager", *flags(spec)]}
        )
        for name, spec in specs.items()
    ]
    cases.write_text("\n".join(lines))
    script = Path(__file__).with_name("engine_cores.py")
    done = subprocess.run(
        [sys.executable, script, cases],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    results = [
        json.loads(line.removeprefix("RESULT "))
        for line in done.stdout.splitlines()
        if line.startswith("RESULT ")
    ]
    assert len(results) == len(specs), done.stderr[-4000:]
    return {result["name"]: result for result in results}


@pytest.mark.parametrize("name", CASES)
def test_the_kv_cache_is_the_one_that_vllm_lays_out(
    specs: Mapping[str, Spec], laid_out: Mapping[str, Mapping[str, Any]], name: str
) -> None:
    """Blocks, tokens and maximum concurrency are equal."""
    found = plan(specs[name])
    assert found.kv_cache is not None, found
    assert laid_out[name] == {
        "name": name,
        "blocks": found.kv_cache.blocks,
        "block_size": found.kv_cache.block_size,
        "tokens": found.kv_cache.tokens,
        "concurrency": found.kv_cache.max_concurrency,
    }
