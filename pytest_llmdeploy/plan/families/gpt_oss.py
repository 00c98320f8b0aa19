"""gpt-oss: experts with biases, attention with sinks, a window in every second layer."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmdeploy.plan.families.blocks import (
    Modules,
    Tensors,
    grouped_attention,
    norms,
    projections,
    router,
    window_of,
)
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.tensors import Layer, Split, Tensor


def gpt_oss_kinds(config: Config) -> Sequence[Kind]:
    """The even layers have the window, whatever layer_types says (models/gpt_oss.py)."""
    sliding = (grouped_attention(config, window_of(config)), "moe")
    full = (grouped_attention(config), "moe")
    return [full if index % 2 else sliding for index in range(config.layers())]


def gpt_oss_layer(config: Config, modules: Modules, kind: Kind) -> Layer:
    hidden, (attention, _) = config.count("hidden_size"), kind
    experts = config.count("num_local_experts")
    tensors = (
        *projections(modules, attention, hidden, bias=True, output_bias=True),
        Tensor("self_attn.sinks", attention.heads, split="rows"),
        *router(hidden, experts, "mlp.router", bias=True),
        *_experts(config, modules, experts),
        *norms(hidden, "input_layernorm", "post_attention_layernorm"),
    )
    return Layer(
        attention=attention,
        tensors=tensors,
        experts=experts,
        experts_per_token=config.count("num_experts_per_tok"),
    )


def _experts(config: Config, modules: Modules, experts: int) -> Tensors:
    hidden, width = config.count("hidden_size"), config.count("intermediate_size")
    for _ in range(2):
        yield from _expert(modules, "gate_up_proj", width, hidden, "rows", experts)
    yield from _expert(modules, "down_proj", hidden, width, "columns", experts)


def _expert(
    modules: Modules, name: str, rows: int, columns: int, split: Split, experts: int
) -> Tensors:
    """A weight and its bias; beside packed weights biases are kept in 32 bits
    (fused_moe/oracle/mxfp4.py).
    """
    packed, whole = modules.packed(f"mlp.experts.{name}"), split if split == "rows" else "no"
    bias = Tensor(f"mlp.experts.{name}_bias", rows, 1, whole, experts=experts)
    yield Tensor(f"mlp.experts.{name}", rows, columns, split, 0, experts, packed)
    yield bias
    if packed:
        yield Tensor(bias.name, rows, 1, whole, experts=experts, made=True)


FAMILIES = {
    "gpt_oss": Family(
        defaults={
            "num_hidden_layers": 36,
            "num_local_experts": 128,
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "head_dim": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
            },
        },
        kinds=gpt_oss_kinds,
        layer=gpt_oss_layer,
        wide_angles=True,
    ),
}
