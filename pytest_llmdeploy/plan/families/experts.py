"""Decoders whose layers have routed experts: mixtral, qwen2_moe, qwen3_moe."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmdeploy.plan.families.blocks import (
    Modules,
    Tensors,
    gated_mlp,
    grouped_attention,
    norms,
    projections,
    qk_norms,
    router,
    types_of,
    window_of,
)
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.dense import qwen_window
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.tensors import Attention, Layer, Tensor


def mixtral_kinds(config: Config) -> Sequence[Kind]:
    """The window is for all layers, unless layer_types says that it is not for every one."""
    count, window = config.layers(), window_of(config)
    types = types_of(config, count)
    every = types is None or all(kind == "sliding_attention" for kind in types)
    return [(grouped_attention(config, window if every else 0), "moe")] * count


def mixtral_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, _) = config.count("hidden_size"), kind
    experts = config.count("num_local_experts")
    width = config.count("intermediate_size")
    path, names = "block_sparse_moe.experts.*", ("w1", "w3", "w2")
    tensors = (
        *projections(modules, attention, hidden),
        *router(hidden, experts, "block_sparse_moe.gate"),
        *gated_mlp(modules, hidden, width, path=path, names=names, experts=experts),
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return _layer(config, attention, tensors, experts)


def qwen_kinds(config: Config) -> Sequence[Kind]:
    """Every decoder_sparse_step-th layer has experts, those in mlp_only_layers have none."""
    count = config.layers()
    types = types_of(config, count)
    attention = grouped_attention(config, qwen_window(config, types))
    step, dense = config.count("decoder_sparse_step"), config.items("mlp_only_layers")
    experts = config.count("num_experts", least=0) > 0
    return [
        (attention, "moe" if experts and (i + 1) % step == 0 and i not in dense else "")
        for i in range(count)
    ]


def qwen2_moe_kinds(config: Config) -> Sequence[Kind]:
    """Where transformers derives layer_types that are not all sliding, none is."""
    if config.flag("use_sliding_window") and not config.items("layer_types"):
        return [(grouped_attention(config), name) for _, name in qwen_kinds(config)]
    return qwen_kinds(config)


def qwen2_moe_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, name) = config.count("hidden_size"), kind
    shared = config.count("shared_expert_intermediate_size", least=0)
    tensors: list[Tensors] = [projections(modules, attention, hidden, bias=True)]
    if name:
        tensors.append(router(hidden, config.count("num_experts")))
    tensors.append(_qwen_mlp(config, modules, name))
    if name and shared:
        tensors.append(gated_mlp(modules, hidden, shared, path="mlp.shared_expert"))
    if name:
        tensors.append(router(hidden, 1, "mlp.shared_expert_gate"))
    return _qwen_layer(config, kind, tensors)


def qwen3_moe_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, name) = config.count("hidden_size"), kind
    bias = config.flag("attention_bias")
    tensors = [
        projections(modules, attention, hidden, bias=bias),
        qk_norms(attention.head_size),
        _qwen_mlp(config, modules, name),
    ]
    if name:
        # Unlike that of other models it is given to the quantization method.
        tensors.append(modules.linear("mlp.gate", config.count("num_experts"), hidden))
    return _qwen_layer(config, kind, tensors)


def _qwen_mlp(config: Config, modules: Modules, name: str) -> Tensors:
    hidden = config.count("hidden_size")
    if not name:
        yield from gated_mlp(modules, hidden, config.count("intermediate_size"))
        return
    experts, width = config.count("num_experts"), config.count("moe_intermediate_size")
    yield from gated_mlp(modules, hidden, width, path="mlp.experts.*", experts=experts)


def _qwen_layer(config: Config, kind: Kind, parts: Sequence[Tensors]) -> Layer:
    hidden, (attention, name) = config.count("hidden_size"), kind
    tensors = tuple(tensor for part in parts for tensor in part)
    tensors += tuple(norms(hidden, "input_layernorm", "post_attention_layernorm"))
    return _layer(config, attention, tensors, config.count("num_experts") if name else 0)


def _layer(config: Config, attention: Attention, tensors: Sequence[Tensor], experts: int) -> Layer:
    chosen = config.count("num_experts_per_tok") if experts else 0
    return Layer(
        attention=attention, tensors=tuple(tensors), experts=experts, experts_per_token=chosen
    )


_QWEN_DEFAULTS = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "max_position_embeddings": 32768,
}

FAMILIES = {
    "mixtral": Family(
        defaults={
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
        },
        kinds=mixtral_kinds,
        layer=mixtral_layer,
    ),
    "qwen2_moe": Family(
        defaults={
            **_QWEN_DEFAULTS,
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "num_experts": 60,
        },
        kinds=qwen2_moe_kinds,
        layer=qwen2_moe_layer,
    ),
    "qwen3_moe": Family(
        defaults={
            **_QWEN_DEFAULTS,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
        },
        kinds=qwen_kinds,
        layer=qwen3_moe_layer,
    ),
}
