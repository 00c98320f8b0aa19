"""Gemma 2 and 3: norms around every block, windows in most layers."""

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

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def gemma2_kinds(config: Config) -> Sequence[Kind]:
    """Every second layer sees everything."""
    return _kinds(config, 2)


def gemma3_kinds(config: Config) -> Sequence[Kind]:
    """Every sliding_window_pattern-th layer sees everything."""
    return _kinds(config, config.count("sliding_window_pattern"))


def gemma2_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    return _layer(config, modules, kind, qk_norm=False)


def gemma3_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    return _layer(config, modules, kind, qk_norm=True)


def _kinds(config: Config, pattern: int) -> Sequence[Kind]:
    count = config.layers()
    sliding, full = grouped_attention(config, window_of(config)), grouped_attention(config)
    types = types_of(config, count)
    if types is not None:
        return [(sliding if kind == "sliding_attention" else full, "") for kind in types]
    return [(sliding if (index + 1) % pattern else full, "") for index in range(count)]


def _layer(config: Config, modules: Modules, kind: Kind, *, qk_norm: bool) -> Layer:
    hidden, (attention, _) = config.count("hidden_size"), kind
    bias = config.flag("attention_bias")
    tensors = (
        *projections(modules, attention, hidden, bias=bias, output_bias=bias),
        *(qk_norms(attention.head_size) if qk_norm else ()),
        *gated_mlp(modules, hidden, config.count("intermediate_size")),
        *norms(hidden, *_NORMS),
    )
    return Layer(attention=attention, tensors=tensors)


_GEMMA2 = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILIES = {
    "gemma2": Family(
        defaults={**_GEMMA2, "vocab_size": 256000, "max_position_embeddings": 8192},
        kinds=gemma2_kinds,
        layer=gemma2_layer,
    ),
    "gemma3_text": Family(
        defaults={
            **_GEMMA2,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
        },
        kinds=gemma3_kinds,
        layer=gemma3_layer,
        local_angles=True,
    ),
}
