"""Dense decoders of the llama kind: llama, mistral, qwen2, qwen3, phi3."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmdeploy.plan.families.blocks import (
    Modules,
    gated_mlp,
    grouped_attention,
    norms,
    projections,
    qk_norms,
    types_of,
    window_of,
)
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.tensors import Layer

_WINDOW_KEYS = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}


def llama_kinds(config: Config) -> Sequence[Kind]:
    """The window is for the layers that layer_types name, or for all where nothing is named
    (models/llama.py; engine/arg_utils.py: create_engine_config).
    """
    count, window = config.layers(), window_of(config)
    types = types_of(config, count)
    sliding = (grouped_attention(config, window), "")
    if types is None:
        return [sliding] * count
    full = (grouped_attention(config), "")
    return [sliding if kind == "sliding_attention" else full for kind in types]


def qwen_window(config: Config, types: Sequence[str] | None) -> int:
    """The window of all layers: use_sliding_window asks for it, and vLLM gives it to all layers
    or to none.
    """
    every = types is None or all(kind == "sliding_attention" for kind in types)
    return window_of(config) if every and config.flag("use_sliding_window") else 0


def qwen_kinds(config: Config) -> Sequence[Kind]:
    """Where only some layers were to have a window, vLLM refuses (models/qwen2.py)."""
    count = config.layers()
    types = types_of(config, count)
    if types is None and window_of(config):
        first = config.count("max_window_layers", least=0)
        types = [
            "full_attention" if index < first else "sliding_attention" for index in range(count)
        ]
    if config.flag("use_sliding_window") and len(set(types or ())) > 1:
        raise config.senseless("max_window_layers")
    return [(grouped_attention(config, qwen_window(config, types)), "")] * count


def llama_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    """The attention_bias is on q, k, v and o; `bias` and `qkv_bias` are older names."""
    bias = config.flag("attention_bias") or config.flag("bias")
    qkv_bias = config.flag("qkv_bias", bias)
    return _layer(config, modules, kind, bias=qkv_bias, output_bias=bias)


def qwen2_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    return _layer(config, modules, kind, bias=True)


def qwen3_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    bias = config.flag("attention_bias")
    return _layer(config, modules, kind, bias=bias, qk_norm=True)


def phi3_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    """Checkpoints hold q, k and v in one weight, and gate and up in another."""
    hidden, (attention, _) = config.count("hidden_size"), kind
    mlp = gated_mlp(
        modules,
        hidden,
        config.count("intermediate_size"),
        names=("gate_up_proj", "gate_up_proj", "down_proj"),
    )
    tensors = (
        *projections(modules, attention, hidden, fused="qkv_proj"),
        *mlp,
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return Layer(attention=attention, tensors=tensors)


def _layer(
    config: Config,
    modules: Modules,
    kind: Kind,
    *,
    bias: bool,
    output_bias: bool = False,
    qk_norm: bool = False,
) -> Layer:
    hidden, (attention, _) = config.count("hidden_size"), kind
    width, mlp_bias = config.count("intermediate_size"), config.flag("mlp_bias")
    tensors = (
        *projections(modules, attention, hidden, bias=bias, output_bias=output_bias),
        *(qk_norms(attention.head_size) if qk_norm else ()),
        *gated_mlp(modules, hidden, width, bias=mlp_bias),
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return Layer(attention=attention, tensors=tensors)


FAMILIES = {
    "llama": Family(
        defaults={"max_position_embeddings": 2048},
        kinds=llama_kinds,
        layer=llama_layer,
    ),
    "mistral": Family(
        defaults={
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        kinds=llama_kinds,
        layer=llama_layer,
    ),
    "qwen2": Family(
        defaults={**_WINDOW_KEYS, "num_key_value_heads": 32, "max_position_embeddings": 32768},
        kinds=qwen_kinds,
        layer=qwen2_layer,
    ),
    "qwen3": Family(
        defaults={
            **_WINDOW_KEYS,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
        },
        kinds=qwen_kinds,
        layer=qwen3_layer,
    ),
    "phi3": Family(
        defaults={"max_position_embeddings": 4096},
        kinds=llama_kinds,
        layer=phi3_layer,
    ),
}
