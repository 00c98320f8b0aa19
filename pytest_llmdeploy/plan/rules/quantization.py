"""Quantized weights: known methods, what device and dtype they need, and shards of whole blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llmdeploy.plan.rules.given import Broken, flag
from pytest_llmdeploy.plan.rules.hardware import dtype
from pytest_llmdeploy.plan.rules.widths import widths
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec, nearest


@dataclass(frozen=True, slots=True)
class Needs:
    """The least compute capability × 10, and the dtypes to calculate in."""

    capability: int
    dtypes: tuple[str, ...] = ("bfloat16", "float16")


_ANY = ("bfloat16", "float16", "float32")

# vLLM's names (quantization/__init__.py), with get_min_capability and get_supported_act_dtypes.
# FP8 without FP8 arithmetic is no fault: from 7.5 on, Marlin's kernels read the weights.
METHODS: Mapping[str, Needs] = {
    "awq": Needs(75),
    "auto_awq": Needs(75),
    "awq_marlin": Needs(75),
    "gptq": Needs(60),
    "auto_gptq": Needs(60),
    "gptq_marlin": Needs(60),
    "fp8": Needs(75),
    "fbgemm_fp8": Needs(80),
    "fp_quant": Needs(100, ("bfloat16",)),
    "modelopt": Needs(80),
    "modelopt_fp4": Needs(75),
    "modelopt_mxfp8": Needs(80, ("bfloat16",)),
    "modelopt_mixed": Needs(75),
    "compressed-tensors": Needs(70, _ANY),
    "experts_int8": Needs(80),
    "moe_wna16": Needs(70),
    "torchao": Needs(75, _ANY),
    "mxfp4": Needs(80, ("bfloat16",)),
    "gpt_oss_mxfp4": Needs(80, ("bfloat16",)),
    "humming": Needs(75),
    "quark": Needs(70),
    "inc": Needs(60),
    "deepseek_v4_fp8": Needs(75),
    "online": Needs(75),
    "fp8_per_tensor": Needs(75),
    "fp8_per_block": Needs(75),
    "fp8_per_channel": Needs(75),
    "int8_per_channel_weight_only": Needs(75),
    "nvfp4_per_token": Needs(75),
    "mxfp8": Needs(75),
}
# What vLLM can do to unquantized weights as it loads them, under names that checkpoints have too.
ONLINE = ("mxfp4", "mxfp8")
_DEPRECATED = ("fbgemm_fp8", "fp_quant")

# A rank's part of an input must be a whole number of groups for these.
_GROUPED = ("awq", "compressed-tensors")
# And of blocks for these.
_BLOCKED = ("fp8", "compressed-tensors", "quark")
_LEAST_BLOCK = 32


def quantization_method(spec: Spec) -> Broken:
    name = spec.model.quantization
    if name is not None and name not in METHODS:
        message = f"quantization {name!r} is not known: {nearest(name, METHODS)}"
        yield "model.quantization", message
    if name in _DEPRECATED and not flag(spec, "allow_deprecated_quantization"):
        message = f"quantization {name} needs serve.allow_deprecated_quantization: true"
        yield "model.quantization", message


def quantized_dtype(spec: Spec, shape: ModelShape) -> Broken:
    needs, found = _needs(spec, shape), dtype(spec, shape)
    if needs and shape.quantization and found not in needs.dtypes:
        message = f"{found}: {shape.quantization.method} calculates in "
        yield "model.dtype", message + " or ".join(needs.dtypes)


def quantized_device(spec: Spec, shape: ModelShape) -> Broken:
    needs, gpu = _needs(spec, shape), spec.hardware.device.gpu
    if not needs or not gpu or not shape.quantization:
        return
    major, minor = gpu.compute_capability
    if major * 10 + minor < needs.capability:
        least = f"{needs.capability // 10}.{needs.capability % 10}"
        message = f"{shape.quantization.method} needs compute capability {least}"
        yield "hardware.device", f"{message}, {gpu.name} has {major}.{minor}"


def block_shards(spec: Spec, shape: ModelShape) -> Broken:
    """FP8 with a scale for each block: a rank's part is a whole number of blocks.

    Of weights that are merged into one matrix (q, k, v; gate, up), the output may be cut.
    """
    tp, found = spec.parallel.tensor, _blocks(spec, shape)
    if tp == 1 or found is None:
        return
    rows, columns = found
    for width in widths(shape).quantized_inputs:
        if width.size % tp == 0 and width.size // tp % columns:
            yield "parallel.tensor", f"TP {tp}: {width} are not split into blocks of {columns}"
    for width in widths(shape).single:
        if width.size % tp == 0 and width.size // tp % rows:
            yield "parallel.tensor", f"TP {tp}: {width} are not split into blocks of {rows}"


def expert_blocks(spec: Spec, shape: ModelShape) -> Broken:
    """An expert's part may be in finer blocks: what divides the block, the part and the hidden
    size alike, when it is 32 at least.
    """
    ways, tp, found = spec.parallel.expert_tensor, spec.parallel.tensor, _blocks(spec, shape)
    if found is None or shape.quantization is None:
        return
    for width in widths(shape).quantized_experts:
        part = width.size // ways
        is_cut = part % found[0] or (tp > 1 and part % found[1])
        finer = math.gcd(*found, part, shape.hidden) if shape.quantization.method == "fp8" else 0
        if width.size % ways == 0 and is_cut and finer < _LEAST_BLOCK:
            message = f"an expert split {ways} ways: {width} are not split into blocks"
            yield "parallel.tensor", f"{message} of {found[0]}"


def group_shards(spec: Spec, shape: ModelShape) -> Broken:
    tp, found = spec.parallel.tensor, shape.quantization
    if found is None or not found.group or found.method not in _GROUPED:
        return
    for width in widths(shape).quantized_inputs:
        part = width.size // tp
        if width.size % tp == 0 and found.group < width.size and part % found.group:
            message = f"TP {tp}: {width} are not split into groups of {found.group}"
            yield "parallel.tensor", message


def _blocks(spec: Spec, shape: ModelShape) -> tuple[int, int] | None:
    """Rows and columns of a block of the checkpoint; vLLM's own blocks need not divide."""
    found = shape.quantization
    if found is None or found.method not in _BLOCKED or spec.model.quantization == "fp8_per_block":
        return None
    return found.block


def _needs(spec: Spec, shape: ModelShape) -> Needs | None:
    found = shape.quantization
    if found is None:
        return None
    if spec.model.quantization in ONLINE and shape.model_type != "gpt_oss":
        return METHODS["online"]
    is_fp4 = found.method == "modelopt" and found.compute == "fp4"
    return METHODS.get("modelopt_fp4" if is_fp4 else found.method)


RULES = ((quantization_method, "_verify_quantization"),)
LAYOUT_RULES = (
    (block_shards, "validate_fp8_block_shape"),
    (expert_blocks, "validate_fp8_block_shape_moe"),
    (group_shards, "verify_group_size_divides_partition"),
)
SHAPE_RULES = (
    (quantized_dtype, "_get_quantization_config"),
    (quantized_device, "_get_quantization_config"),
)
