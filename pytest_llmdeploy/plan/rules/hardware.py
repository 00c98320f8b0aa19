"""What a device can do: number formats, and blocks of the KV cache."""

from __future__ import annotations

from pytest_llmdeploy.plan.memory import resolved_dtype
from pytest_llmdeploy.plan.rules.contexts import SPARSE
from pytest_llmdeploy.plan.rules.given import Broken
from pytest_llmdeploy.plan.rules.widths import widths
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

_BFLOAT16_FROM = (8, 0)

# Models that lose too much in float16 (vLLM: _FLOAT16_NOT_SUPPORTED_MODELS).
_NOT_IN_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})

# What the kernels of dense latent attention read, together (v1/attention/backends/mla).
LATENT_CACHE = frozenset({"auto", "float16", "bfloat16", "fp8", "fp8_e4m3"})

# Tokens; attention kernels take multiples of it.
_BLOCKS = {"cuda": 16, "cpu": 32}


def bfloat16(spec: Spec) -> Broken:
    """What is left to `auto` falls back to float16; an old GPU refuses only what is asked for."""
    gpu = spec.hardware.device.gpu
    if spec.model.dtype == "bfloat16" and gpu and gpu.compute_capability < _BFLOAT16_FROM:
        major, minor = gpu.compute_capability
        message = f"bfloat16 needs compute capability 8.0, {gpu.name} has {major}.{minor}"
        yield "model.dtype", message


def float16(spec: Spec, shape: ModelShape) -> Broken:
    if spec.model.dtype == "float16" and shape.model_type in _NOT_IN_FLOAT16:
        yield "model.dtype", f"float16: {shape.model_type} is numerically unstable in it"


def block_size(spec: Spec, shape: ModelShape) -> Broken:
    size, platform = spec.serve.block_size, spec.hardware.device.platform
    multiple = _BLOCKS[platform]
    overruled = platform == "cpu" and widths(shape).is_latent
    if size and size % multiple and not overruled:
        message = f"block_size {size}: attention on {platform} takes multiples of {multiple}"
        yield "serve.block_size", message


def kv_cache_format(spec: Spec, shape: ModelShape) -> Broken:
    """Some formats are for latent attention only, others for any but it."""
    name, latent = spec.serve.kv_cache_dtype, widths(shape).is_latent
    if latent and shape.model_type not in SPARSE and name not in LATENT_CACHE:
        message = f"kv_cache_dtype {name}: {shape.model_type} has MLA, which takes "
        yield "serve.kv_cache_dtype", message + ", ".join(sorted(LATENT_CACHE))
    elif not latent and name.endswith("_ds_mla"):
        message = f"kv_cache_dtype {name} is for sparse MLA, {shape.model_type} has none"
        yield "serve.kv_cache_dtype", message


def dtype(spec: Spec, shape: ModelShape) -> str:
    """The dtype that vLLM calculates in on this device."""
    gpu, found = spec.hardware.device.gpu, resolved_dtype(spec, shape)
    is_old = gpu is not None and gpu.compute_capability < _BFLOAT16_FROM
    if spec.model.dtype == "auto" and is_old and found == "bfloat16":
        return "float16"
    return found


RULES = ((bfloat16, "check_if_supports_dtype"),)
SHAPE_RULES = (
    (float16, "_check_valid_dtype"),
    (block_size, "supports_block_size"),
    (kv_cache_format, "get_attn_backend_cls"),
)
