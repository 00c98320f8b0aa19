"""Lengths of sequences and sizes of batches."""

from __future__ import annotations

from pytest_llmdeploy.plan.kv_cache import KvCache, groups_of
from pytest_llmdeploy.plan.limits import (
    max_model_len,
    max_num_batched_tokens,
    max_num_seqs,
    paging,
)
from pytest_llmdeploy.plan.rules.given import Broken, count, flag, is_on
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec


def positions(spec: Spec, shape: ModelShape) -> Broken:
    length = spec.serve.max_model_len
    if (
        length
        and length > shape.positions
        and is_on(spec, "VLLM_ALLOW_LONG_MAX_MODEL_LEN") is False
    ):
        message = f"max_model_len {length:,} exceeds the model's {shape.positions:,} positions"
        yield "serve.max_model_len", message


def batched_sequences(spec: Spec, shape: ModelShape) -> Broken:
    """A step has at least a token for each sequence that runs."""
    tokens, sequences = _batched_tokens(spec, shape), max_num_seqs(spec)
    if tokens < sequences and flag(spec, "performance_mode") != "throughput":
        given = spec.serve.max_num_batched_tokens is not None
        key = "serve.max_num_batched_tokens" if given else "serve.max_num_seqs"
        which = f"max_num_batched_tokens {tokens:,}" + ("" if given else " (the default)")
        yield key, f"{which} is less than max_num_seqs {sequences:,}"


def batched_prompt(spec: Spec, shape: ModelShape) -> Broken:
    """What is not chunked must fit into one step."""
    tokens, length = spec.serve.max_num_batched_tokens, max_model_len(spec, shape)
    if tokens and spec.serve.enable_chunked_prefill is False and tokens < length:
        message = f"without chunked prefill, max_num_batched_tokens {tokens:,} must not be less"
        yield "serve.max_num_batched_tokens", f"{message} than max_model_len {length:,}"


def active_sequences(spec: Spec) -> Broken:
    active, sequences = count(spec, "max_num_active_seqs"), max_num_seqs(spec)
    if active is not None and active > sequences:
        message = f"max_num_active_seqs {active:,} exceeds max_num_seqs {sequences:,}"
        yield "serve.max_num_active_seqs", message


def long_prefills(spec: Spec, shape: ModelShape) -> Broken:
    long, length = count(spec, "long_prefill_token_threshold"), max_model_len(spec, shape)
    if long is not None and long > length:
        message = f"long_prefill_token_threshold {long:,} exceeds max_model_len {length:,}"
        yield "serve.long_prefill_token_threshold", message


def block_override(spec: Spec, shape: ModelShape) -> Broken:
    """The declared blocks, of which one stays empty, hold a sequence of full length."""
    blocks, length = count(spec, "num_gpu_blocks_override"), max_model_len(spec, shape)
    if blocks is None:
        return
    cache = KvCache(0, 0, (blocks, blocks), groups_of(spec, shape), paging(spec, shape))
    needed = cache.blocks_per_sequence(length) + 1
    if blocks < needed:
        message = f"num_gpu_blocks_override {blocks:,}: a sequence of max_model_len {length:,}"
        yield "serve.num_gpu_blocks_override", f"{message} needs {needed:,}"


def request_lengths(spec: Spec, shape: ModelShape) -> Broken:
    length = max_model_len(spec, shape)
    for index, workload in enumerate(spec.workloads):
        if workload.longest > length:
            message = f"{workload.name}: input and output are up to {workload.longest:,} tokens,"
            yield f"workloads[{index}]", f"{message} max_model_len is {length:,}"


def _batched_tokens(spec: Spec, shape: ModelShape) -> int:
    length = max_model_len(spec, shape)
    tokens = max_num_batched_tokens(spec, length)
    is_whole = spec.serve.enable_chunked_prefill is False
    return max(tokens, length) if is_whole and not spec.serve.max_num_batched_tokens else tokens


RULES = ((active_sequences, "verify_max_model_len"),)
SHAPE_RULES = (
    (positions, "_get_and_verify_max_len"),
    (batched_sequences, "verify_max_model_len"),
    (batched_prompt, "verify_max_model_len"),
    (long_prefills, "verify_max_model_len"),
    (block_override, "check_enough_kv_cache_memory"),
    (request_lengths, ""),
)
