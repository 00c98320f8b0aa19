"""Llama 4: chunked local attention in most layers, a shared expert beside the routed ones."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmdeploy.plan.families.blocks import (
    Modules,
    Tensors,
    gated_mlp,
    grouped_attention,
    norms,
    projections,
    router,
)
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.tensors import Layer, Tensor


def llama4_kinds(config: Config) -> Sequence[Kind]:
    """Layers without rotary angles see everything, the others their chunk (models/llama4.py)."""
    count, step = config.layers(), config.count("interleave_moe_layer_step", least=0)
    chunk = config.count("attention_chunk_size", 0, least=0)
    local = grouped_attention(config, chunk, "chunked" if chunk else "")
    everywhere, rotary = grouped_attention(config), _rotary(config, count)
    return [
        (local if rotary[index] else everywhere, "moe" if step and (index + 1) % step == 0 else "")
        for index in range(count)
    ]


def llama4_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, name) = config.count("hidden_size"), kind
    tensors = (
        *projections(modules, attention, hidden),
        *(_experts(config, modules) if name else _dense(config, modules)),
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return Layer(
        attention=attention,
        tensors=tensors,
        experts=config.count("num_local_experts") if name else 0,
        experts_per_token=config.count("num_experts_per_tok") if name else 0,
    )


def _rotary(config: Config, layers: int) -> Sequence[bool]:
    given = config.items("no_rope_layers")
    if given and len(given) < layers:
        raise config.senseless("no_rope_layers")
    interval = config.count("no_rope_layer_interval")
    return [bool(flag) for flag in given] or [bool((i + 1) % interval) for i in range(layers)]


def _dense(config: Config, modules: Modules) -> Tensors:
    width = config.count("intermediate_size_mlp")
    return gated_mlp(modules, config.count("hidden_size"), width, path="feed_forward")


def _experts(config: Config, modules: Modules) -> Tensors:
    """Checkpoints hold gate and up of all experts in one weight."""
    hidden, width = config.count("hidden_size"), config.count("intermediate_size")
    experts = config.count("num_local_experts")
    packed = modules.packed("feed_forward.experts.*.gate_proj")
    yield from router(hidden, experts, "feed_forward.router")
    yield from gated_mlp(modules, hidden, width, path="feed_forward.shared_expert")
    for _ in range(2):
        name = "feed_forward.experts.gate_up_proj"
        yield Tensor(name, width, hidden, "rows", 0, experts, packed)
    name = "feed_forward.experts.down_proj"
    yield Tensor(name, hidden, width, "columns", 0, experts, packed)


FAMILIES = {
    "llama4_text": Family(
        defaults={
            "vocab_size": 202048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 1,
            "num_local_experts": 16,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
        },
        kinds=llama4_kinds,
        layer=llama4_layer,
    ),
}
