"""Context parallelism: of decode (DCP), which shares out copies of the KV cache, and of prefill."""

from __future__ import annotations

from pytest_llmdeploy.plan.limits import block_size
from pytest_llmdeploy.plan.rules.given import Broken, count
from pytest_llmdeploy.plan.rules.widths import widths
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

# Latent attention that reads only chosen tokens: its kernels know more of context parallelism.
SPARSE = frozenset({"deepseek_v32", "glm_moe_dsa", "deepseek_v4"})

_KEY = "parallel.decode_context"


def decode_context(spec: Spec) -> Broken:
    tp, pcp = spec.parallel.tensor, spec.parallel.prefill_context
    dcp = spec.parallel.decode_context
    if pcp == 1 and tp % dcp:
        yield _KEY, f"DCP {dcp} does not divide TP {tp}"
    if pcp > 1 and dcp not in {1, pcp, tp * pcp}:
        yield _KEY, f"DCP {dcp}: with PCP {pcp} it is 1, {pcp} or {tp * pcp}"


def decode_context_heads(spec: Spec, shape: ModelShape) -> Broken:
    """Without MLA, DCP shares out the copies of KV heads that a larger TP makes."""
    tp, dcp, heads = spec.parallel.tensor, spec.parallel.decode_context, shape.kv_heads
    if dcp == 1 or widths(shape).is_latent:
        return
    if tp <= heads:
        yield _KEY, f"DCP {dcp}: TP {tp} must be greater than the {heads} KV heads"
    elif dcp > tp // heads:
        yield _KEY, f"DCP {dcp}: TP {tp} keeps only {tp // heads} copies of the {heads} KV heads"
    elif shape.heads // heads % dcp:
        message = f"DCP {dcp}: {shape.heads // heads} query heads per KV head are not divisible"
        yield _KEY, f"{message} by {dcp}"


def decode_context_window(spec: Spec, shape: ModelShape) -> Broken:
    """Layers with a window hold only their last tokens, unless they are managed like full ones."""
    dcp, found = spec.parallel.decode_context, widths(shape)
    alike = spec.serve.disable_hybrid_kv_cache_manager and found.sliding < found.layers
    if dcp > 1 and found.sliding and not alike:
        message = f"DCP {dcp}: {found.sliding} of {found.layers} layers have a sliding window"
        yield _KEY, message


def decode_context_blocks(spec: Spec, shape: ModelShape) -> Broken:
    """So many tokens in turn are on each rank; a block holds a whole number of turns."""
    if spec.parallel.decode_context == 1:
        return
    each, block = count(spec, "cp_kv_cache_interleave_size") or 1, block_size(spec, shape)
    if each > 0 and block % each:
        message = f"block_size {block} is not divisible by cp_kv_cache_interleave_size {each}"
        yield "serve.cp_kv_cache_interleave_size", message


def prefill_context(spec: Spec, shape: ModelShape) -> Broken:
    pcp = spec.parallel.prefill_context
    if pcp > 1 and not widths(shape).is_latent:
        message = f"PCP {pcp}: only MLA can split a prompt, {shape.model_type} has none"
        yield "parallel.prefill_context", message


def both_contexts(spec: Spec, shape: ModelShape) -> Broken:
    pcp, dcp = spec.parallel.prefill_context, spec.parallel.decode_context
    if pcp > 1 and dcp > 1 and widths(shape).is_latent and shape.model_type not in SPARSE:
        yield _KEY, f"DCP {dcp} beside PCP {pcp}: only sparse MLA has both"


RULES = ((decode_context, "_validate_parallel_config"),)
SHAPE_RULES = (
    (decode_context_heads, "verify_with_parallel_config"),
    (decode_context_window, "SlidingWindowSpec"),
    (decode_context_blocks, "validate_block_size"),
    (prefill_context, "check_attention_cp_compatibility"),
    (both_contexts, "MLAAttention"),
)
