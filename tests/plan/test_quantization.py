"""Quantized weights: bytes of every method by hand, which modules it packs, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmdeploy.plan.checkpoint import packing_of
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_from_config

BASE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
W4A16 = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 128,
    "symmetric": True,
}


def compressed(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


def packed(declared: dict[str, Any], asked: str | None = None) -> ModelShape:
    return shape_from_config({**BASE, "quantization_config": declared}, asked)


def modules(shape: ModelShape, layer: int = 0) -> set[str]:
    """The modules of a layer that are packed."""
    tensors = shape.layers[layer].tensors
    return {tensor.name.removesuffix(".weight") for tensor in tensors if tensor.quantized}


# For 256 rows × 512 columns: weights, scales, zeros; and the units that multiply them.
WEIGHTS = 256 * 512


@pytest.mark.parametrize(
    ("declared", "expected", "compute"),
    [
        ({"quant_method": "fp8"}, WEIGHTS + 4, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, WEIGHTS + 2 * 4 * 4, "fp8"),
        (compressed(CHANNEL), WEIGHTS + 256 * 4, "fp8"),
        (compressed({**CHANNEL, "strategy": "tensor"}), WEIGHTS + 4, "fp8"),
        (compressed({**CHANNEL, "type": "int"}), WEIGHTS + 256 * 4, "fp8"),
        (compressed(W4A16), WEIGHTS // 2 + 256 * 4 * 2, "bf16"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
            WEIGHTS // 2 + 256 * 4 * (2 + 2),
            "bf16",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            WEIGHTS // 2 + 256 * 4 * 2 + 256 * 4 // 2,
            "bf16",
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": -1},
            WEIGHTS + 256 * (2 + 1),
            "bf16",
        ),
        ({"quant_method": "mxfp4"}, WEIGHTS // 2 + 256 * 16, "bf16"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, WEIGHTS + 4, "fp8"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
            WEIGHTS // 2 + 256 * 32,
            "fp4",
        ),
    ],
)
def test_stored_bytes(declared: dict[str, Any], expected: int, compute: str) -> None:
    """Weights and their scales, and as many again for every expert."""
    quantization = packed(declared).quantization
    assert quantization is not None
    assert quantization.stored_bytes(256, 512, 1) == expected
    assert quantization.stored_bytes(256, 512, 5) == 5 * expected
    assert quantization.compute == compute


def test_mxfp4_is_padded() -> None:
    """A rank's part of gpt-oss (2880 / 4 = 720 rows) is padded to 64, scales to 128 × 4 groups."""
    quantization = packed({"quant_method": "mxfp4"}).quantization
    assert quantization is not None
    assert quantization.stored_bytes(720, 2880, 1) == 768 * 2880 // 2 + 768 * 92
    assert quantization.stored_bytes(2880, 2880, 1) == 2880 * 2880 // 2 + 2944 * 92


def test_padding_is_no_parameter() -> None:
    """Quantized or not, a model has as many parameters."""
    plain = shape_from_config(BASE).parameters
    assert packed({"quant_method": "mxfp4"}).parameters == plain
    assert packed({"quant_method": "fp8"}).parameters == plain


ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
EXPERTS = {f"mlp.experts.*.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"quant_method": "fp8"}, ATTENTION | EXPERTS | {"mlp.gate"}),
        ({"quant_method": "mxfp4"}, EXPERTS),
        (compressed(CHANNEL, ignore=["lm_head", "re:.*mlp.gate$"]), ATTENTION | EXPERTS),
        (compressed(CHANNEL, ignore=["re:.*self_attn.*", "re:.*gate$"]), EXPERTS),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["*.mlp.gate"]},
            ATTENTION | EXPERTS,
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["self_attn", "*.gate"]},
            EXPERTS,
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": None},
            ATTENTION | EXPERTS,
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*attn.*": {}}},
            EXPERTS,
        ),
    ],
)
def test_packed_modules(declared: dict[str, Any], expected: set[str]) -> None:
    """Lists of what is left alone are read as each method reads them."""
    assert modules(packed(declared)) == expected


def test_numbered_names_tell_layers_apart() -> None:
    """Layer 1 is not layer 11, and layers that are left alone in the same way stay one object."""
    ignored = [f"model.layers.{index}.mlp.gate" for index in range(12)]
    ignored += ["model.layers.1.self_attn.o_proj"]
    shape = packed({"quant_method": "fp8", "modules_to_not_convert": ignored})
    assert modules(shape, 1) == ATTENTION - {"self_attn.o_proj"} | EXPERTS
    assert modules(shape, 11) == ATTENTION | EXPERTS
    assert len({id(layer) for layer in shape.layers}) == 2


def test_towers_can_be_left_alone() -> None:
    """The names of a multimodal checkpoint, old or new, are those of its modules."""
    config = {
        "model_type": "mistral3",
        "quantization_config": {
            "quant_method": "fp8",
            "modules_to_not_convert": ["lm_head", "model.language_model.layers.0.mlp.up_proj"],
        },
    }
    shape = shape_from_config(config)
    assert any(tensor.quantized for tensor in shape.towers)
    first, second = shape.layers[0], shape.layers[1]
    assert "mlp.up_proj" not in {t.name[:-7] for t in first.tensors if t.quantized}
    assert "mlp.up_proj" in {t.name[:-7] for t in second.tensors if t.quantized}
    config["quantization_config"] = compressed(
        CHANNEL, ignore=["re:vision_tower.*", "re:multi_modal_projector.*"]
    )
    assert not any(tensor.quantized for tensor in shape_from_config(config).towers)


@pytest.mark.parametrize(
    ("asked", "bits", "linear"),
    [
        ("fp8", 8, True),
        ("fp8_per_channel", 8, True),
        ("fp8_per_block", 8, True),
        ("int8_per_channel_weight_only", 8, False),
    ],
)
def test_online_quantization(asked: str, bits: int, linear: bool) -> None:
    """An unquantized checkpoint is quantized as it loads; some ways are for experts only."""
    shape = shape_from_config(BASE, asked)
    assert shape.quantization is not None
    assert shape.quantization.bits == bits
    assert modules(shape) == (ATTENTION | EXPERTS | {"mlp.gate"} if linear else EXPERTS)
    assert not any(tensor.quantized for tensor in (*shape.embedding, *shape.head))


@pytest.mark.parametrize(
    ("declared", "asked", "message"),
    [
        ({"quant_method": "awk"}, None, "'awk' is not known: did you mean 'awq'"),
        ({"quant_method": "fp8"}, "awq", "is 'awq', but the checkpoint is quantized with 'fp8'"),
        (None, "awq", "the checkpoint is not quantized, and vLLM can't do it"),
        ({"quant_method": "gptq", "bits": 4}, None, "no 'quantization_config.group_size'"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"+:x": {"bits": 8}}},
            None,
            "more than one bit width",
        ),
        (compressed(W4A16, config_groups={}), None, "several or no config_groups"),
        (
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
            None,
            "MIXED_PRECISION",
        ),
        (compressed(CHANNEL, ignore=["re:("]), None, "has the pattern"),
    ],
)
def test_what_is_not_known(
    declared: dict[str, Any] | None, asked: str | None, message: str
) -> None:
    """An unknown way of storing is said, never guessed."""
    with pytest.raises(ShapeUnknownError, match=message):
        packing_of({"quantization_config": declared}, asked)


def test_the_same_method_may_be_asked_for() -> None:
    """VLLM's own names for a checkpoint's method are that method."""
    declared = {"quant_method": "awq", "bits": 4, "group_size": 128}
    assert packed(declared, "awq_marlin").quantization == packed(declared).quantization
