"""Encoders and projectors of models that see: pixtral, siglip and Llama 4's own.

What the head of such a model is not: the decoder, which has a family of its own.
"""

from __future__ import annotations

from pytest_llmdeploy.plan.families.blocks import (
    Modules,
    Tensors,
    gated_mlp,
    layer_norm,
    norm,
)
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.families.family import Multimodal
from pytest_llmdeploy.plan.tensors import Tensor

_PIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_channels": 3,
    "patch_size": 16,
}
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
_LLAMA4 = {
    "hidden_size": 768,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "vision_output_dim": 7680,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
}


def mistral3_towers(config: Config, text: Config, modules: Modules) -> Tensors:
    """Pixtral as far as the layer whose features are taken, and a projector that merges patches."""
    vision = config.section("vision_config", _PIXTRAL)
    hidden, wide, merge = _sizes(vision)[0], text.count("hidden_size"), "spatial_merge_size"
    yield from _pixtral(vision, modules, _depth(config, vision.layers()))
    bias = config.flag("multimodal_projector_bias")
    side = config.count(merge)
    yield norm("multi_modal_projector.norm", hidden)
    name = "multi_modal_projector.patch_merger.merging_layer.weight"
    yield Tensor(name, hidden, hidden * side**2)
    path = "multi_modal_projector.linear"
    yield from modules.linear(f"{path}_1", wide, hidden, "rows", bias=bias)
    yield from modules.linear(f"{path}_2", wide, wide, "columns", bias=bias)


def gemma3_towers(config: Config, text: Config, modules: Modules) -> Tensors:
    """Siglip without its head, and one projection."""
    vision = config.section("vision_config", _SIGLIP)
    hidden, width = _sizes(vision)
    path = "vision_tower.vision_model"
    patches = (vision.count("image_size") // vision.count("patch_size")) ** 2
    yield Tensor(f"{path}.embeddings.patch_embedding.weight", hidden, _patch(vision))
    yield Tensor(f"{path}.embeddings.patch_embedding.bias", hidden)
    yield Tensor(f"{path}.embeddings.position_embedding.weight", patches, hidden)
    for index in range(vision.layers()):
        layer = f"{path}.encoder.layers.{index}"
        yield from _attention(modules, f"{layer}.self_attn", hidden, "out_proj", bias=True)
        yield from _mlp(modules, f"{layer}.mlp", hidden, width)
        for name in ("layer_norm1", "layer_norm2"):
            yield from layer_norm(f"{layer}.{name}", hidden)
    yield from layer_norm(f"{path}.post_layernorm", hidden)
    name = "multi_modal_projector.mm_input_projection_weight"
    yield Tensor(name, hidden, text.count("hidden_size"))
    yield norm("multi_modal_projector.mm_soft_emb_norm", hidden)


def llama4_towers(config: Config, text: Config, modules: Modules) -> Tensors:
    """A tower of its own, an adapter that shuffles pixels, and one projection."""
    vision = config.section("vision_config", _LLAMA4)
    hidden, width = _sizes(vision)
    patches = (vision.count("image_size") // vision.count("patch_size")) ** 2 + 1
    yield Tensor("vision_model.class_embedding", hidden)
    yield Tensor("vision_model.positional_embedding_vlm", patches, hidden)
    name = "vision_model.patch_embedding.linear"
    yield from modules.linear(name, hidden, _patch(vision), "rows")
    for index in range(vision.layers()):
        layer = f"vision_model.model.layers.{index}"
        yield from _attention(modules, f"{layer}.self_attn", hidden, "o_proj", bias=True)
        yield from _mlp(modules, f"{layer}.mlp", hidden, width)
        for norm_name in ("input_layernorm", "post_attention_layernorm"):
            yield from layer_norm(f"{layer}.{norm_name}", hidden)
    yield from layer_norm("vision_model.layernorm_pre", hidden)
    yield from layer_norm("vision_model.layernorm_post", hidden)
    yield from _llama4_projector(vision, text, modules)


def _llama4_projector(vision: Config, text: Config, modules: Modules) -> Tensors:
    inner, path = vision.count("projector_input_dim"), "vision_model.vision_adapter.mlp"
    bias, out = vision.flag("multi_modal_projector_bias"), vision.count("projector_output_dim")
    width = vision.count("intermediate_size")
    yield from modules.linear(f"{path}.fc1", inner, width, "rows", bias=bias)
    yield from modules.linear(f"{path}.fc2", out, inner, "columns", bias=bias)
    wide, seen = text.count("hidden_size"), vision.count("vision_output_dim")
    yield from modules.linear("multi_modal_projector.linear_1", wide, seen, "rows")


def _pixtral(vision: Config, modules: Modules, depth: int) -> Tensors:
    hidden, width = _sizes(vision)
    yield Tensor("vision_tower.patch_conv.weight", hidden, _patch(vision))
    yield norm("vision_tower.ln_pre", hidden)
    for index in range(depth):
        layer = f"vision_tower.transformer.layers.{index}"
        yield from _attention(modules, f"{layer}.attention", hidden, "o_proj")
        yield from gated_mlp(modules, hidden, width, path=f"{layer}.feed_forward")
        yield norm(f"{layer}.attention_norm", hidden)
        yield norm(f"{layer}.ffn_norm", hidden)


def _depth(config: Config, layers: int) -> int:
    """Layers up to the deepest whose features are taken, counted from the end where negative."""
    taken = config.get("vision_feature_layer")
    depths: list[int] = []
    for index in taken if isinstance(taken, list) and taken else [taken]:
        if type(index) is not int or not -layers <= index <= layers:
            raise config.senseless("vision_feature_layer")
        depths.append(layers + index + 1 if index < 0 else index)
    return max(depths)


def _attention(
    modules: Modules, path: str, hidden: int, output: str, *, bias: bool = False
) -> Tensors:
    for name in ("q_proj", "k_proj", "v_proj"):
        yield from modules.linear(f"{path}.{name}", hidden, hidden, "rows", bias=bias)
    yield from modules.linear(f"{path}.{output}", hidden, hidden, "columns", bias=bias)


def _mlp(modules: Modules, path: str, hidden: int, width: int) -> Tensors:
    yield from modules.linear(f"{path}.fc1", width, hidden, "rows", bias=True)
    yield from modules.linear(f"{path}.fc2", hidden, width, "columns", bias=True)


def _sizes(vision: Config) -> tuple[int, int]:
    return vision.count("hidden_size"), vision.count("intermediate_size")


def _patch(vision: Config) -> int:
    """Numbers in one patch of an image."""
    return vision.count("num_channels") * vision.count("patch_size") ** 2


MULTIMODAL = {
    "mistral3": Multimodal(
        text="mistral",
        towers=mistral3_towers,
        defaults={"vision_feature_layer": -1, "spatial_merge_size": 2},
    ),
    "gemma3": Multimodal(text="gemma3_text", towers=gemma3_towers),
    "llama4": Multimodal(text="llama4_text", towers=llama4_towers),
}
