"""DeepSeek V2 and V3: multi-head latent attention, shared and routed experts."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmdeploy.plan.families.blocks import Modules, Tensors, gated_mlp, norm, norms, router
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.tensors import Attention, Layer, Tensor


def deepseek_kinds(config: Config) -> Sequence[Kind]:
    """The first layers are dense, and of the others every moe_layer_freq-th has experts."""
    attention = Attention(
        kind="mla",
        heads=config.count("num_attention_heads"),
        kv_heads=1,
        head_size=config.count("kv_lora_rank") + config.count("qk_rope_head_dim"),
        value_size=0,
    )
    dense, step = config.count("first_k_dense_replace", 0, least=0), config.count("moe_layer_freq")
    experts = config.count("n_routed_experts", 0, least=0) > 0
    return [
        (attention, "moe" if experts and index >= dense and index % step == 0 else "")
        for index in range(config.layers())
    ]


def deepseek_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, name) = config.count("hidden_size"), kind
    width = config.count("intermediate_size")
    tensors = (
        *_latent_attention(config, modules),
        *(_experts(config, modules) if name else gated_mlp(modules, hidden, width)),
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return Layer(
        attention=attention,
        tensors=tensors,
        experts=config.count("n_routed_experts") if name else 0,
        experts_per_token=config.count("num_experts_per_tok") if name else 0,
    )


def _latent_attention(config: Config, modules: Modules) -> Tensors:
    """What leads into the latents is on every rank, what leads out of them is split by heads."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    nope, rope = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    value, latent = config.count("v_head_dim"), config.count("kv_lora_rank")
    query, wide = heads * (nope + rope), heads * (nope + value)
    if rank := config.count("q_lora_rank", 0, least=0):
        yield from modules.linear("self_attn.q_a_proj", rank, hidden)
        yield norm("self_attn.q_a_layernorm", rank)
        yield from modules.linear("self_attn.q_b_proj", query, rank, "rows")
    else:
        yield from modules.linear("self_attn.q_proj", query, hidden, "rows")
    yield from modules.linear("self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
    yield norm("self_attn.kv_a_layernorm", latent)
    yield from modules.linear("self_attn.kv_b_proj", wide, latent, "rows")
    yield from modules.linear("self_attn.o_proj", hidden, heads * value, "columns")
    if modules.packed("self_attn.kv_b_proj"):
        # W_UK and W_UV: unpacked to be absorbed; otherwise they share kv_b_proj's memory
        # (layers/attention/mla_attention.py: process_weights_after_loading).
        yield Tensor("self_attn.kv_b_proj.weight", wide, latent, "rows", made=True)


def _experts(config: Config, modules: Modules) -> Tensors:
    hidden, width = config.count("hidden_size"), config.count("moe_intermediate_size")
    experts = config.count("n_routed_experts")
    yield from router(hidden, experts)
    if config.get("topk_method") == "noaux_tc":
        yield Tensor("mlp.gate.e_score_correction_bias", experts)
    yield from gated_mlp(modules, hidden, width, path="mlp.experts.*", experts=experts)
    if shared := config.count("n_shared_experts", 0, least=0):
        yield from gated_mlp(modules, hidden, width * shared, path="mlp.shared_experts")


_COMMON = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
}
_V3 = Family(
    defaults={
        **_COMMON,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "topk_method": "noaux_tc",
        "max_position_embeddings": 4096,
    },
    kinds=deepseek_kinds,
    layer=deepseek_layer,
    wide_angles=True,
)

FAMILIES = {
    "deepseek_v2": Family(
        defaults={
            **_COMMON,
            "moe_intermediate_size": 1407,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "max_position_embeddings": 2048,
        },
        kinds=deepseek_kinds,
        layer=deepseek_layer,
        wide_angles=True,
    ),
    "deepseek_v3": _V3,
    "kimi_k2": _V3,
}
