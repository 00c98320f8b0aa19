"""The rules that a deployment must keep to start at all, each as vLLM enforces it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pytest_llmdeploy.plan.memory import max_num_batched_tokens, max_num_seqs
from pytest_llmdeploy.plan.model import Violation
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

Rule = Callable[[Spec, ModelShape], Iterator[tuple[str, str]]]
"""Yields (key, message) for every way in which the spec breaks the rule."""

_VERIFY = "verify_with_parallel_config"


def devices(spec: Spec, _shape: ModelShape | None) -> Iterator[tuple[str, str]]:
    needed, there = spec.parallel.devices, spec.hardware.devices
    if needed > there:
        yield "parallel", f"{spec.parallel} needs {needed} devices, the hardware has {there}"


def attention_heads(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp = spec.parallel.tensor
    if shape.heads % tp:
        yield "parallel.tensor", f"TP {tp}: {shape.heads} attention heads are not divisible by {tp}"


def kv_heads(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp, heads = spec.parallel.tensor, shape.kv_heads
    if heads % tp and tp % heads:
        message = f"TP {tp}: {heads} KV heads can be neither split nor replicated {tp} ways"
        yield "parallel.tensor", message


def mlp_width(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp = spec.parallel.tensor
    if shape.intermediate % tp:
        message = f"TP {tp}: the MLP width {shape.intermediate} is not divisible by {tp}"
        yield "parallel.tensor", message


def vocabulary(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp = spec.parallel.tensor
    if shape.padded_vocab % tp:
        message = f"TP {tp}: the padded vocabulary {shape.padded_vocab} is not divisible by {tp}"
        yield "parallel.tensor", message


def stages(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    pp, split = spec.parallel.pipeline, spec.parallel.layers
    if pp > shape.layers:
        yield "parallel.pipeline", f"PP {pp}: the model has only {shape.layers} layers"
    if split is not None and (
        len(split) != pp or sum(split) != shape.layers or any(count < 0 for count in split)
    ):
        message = f"{list(split)} are not {shape.layers} layers on {pp} stages"
        yield "parallel.layers", message


def dense_experts(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    if spec.parallel.expert:
        message = f"expert parallelism: {shape.model_type} is a dense model, it has no experts"
        yield "parallel.expert", message


def decode_context(spec: Spec, _shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp, pcp = spec.parallel.tensor, spec.parallel.prefill_context
    dcp = spec.parallel.decode_context
    if pcp == 1 and tp % dcp:
        yield "parallel.decode_context", f"DCP {dcp} does not divide TP {tp}"
    if pcp > 1 and dcp not in {1, pcp, tp * pcp}:
        message = f"DCP {dcp}: with PCP {pcp} it is 1, {pcp} or {tp * pcp}"
        yield "parallel.decode_context", message


def decode_context_heads(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    tp, dcp, heads = spec.parallel.tensor, spec.parallel.decode_context, shape.kv_heads
    if dcp > 1 and dcp > tp // heads:
        message = f"DCP {dcp}: TP {tp} keeps only {tp // heads} copies of the {heads} KV heads"
        yield "parallel.decode_context", message
    if shape.heads // heads % dcp:
        message = f"DCP {dcp}: {shape.heads // heads} query heads per KV head are not divisible"
        yield "parallel.decode_context", f"{message} by {dcp}"


def positions(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    length = spec.serve.max_model_len
    allowed = spec.serve.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
    if length and length > shape.positions and (allowed is None or allowed.text != "1"):
        message = f"max_model_len {length:,} exceeds the model's {shape.positions:,} positions"
        yield "serve.max_model_len", message


def batched_tokens(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    length = spec.serve.max_model_len or shape.positions
    tokens, sequences = max_num_batched_tokens(spec, length), max_num_seqs(spec)
    if spec.serve.max_num_batched_tokens and tokens < sequences:
        message = f"max_num_batched_tokens {tokens:,} is less than max_num_seqs {sequences:,}"
        yield "serve.max_num_batched_tokens", message
    if spec.serve.enable_chunked_prefill is False and tokens < length:
        message = f"without chunked prefill, max_num_batched_tokens {tokens:,} must not be less"
        yield "serve.max_num_batched_tokens", f"{message} than max_model_len {length:,}"


def request_lengths(spec: Spec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    length = spec.serve.max_model_len or shape.positions
    for index, workload in enumerate(spec.workloads):
        most = workload.input_tokens.most + workload.output_tokens.most
        if most > length:
            message = f"{workload.name}: input and output are up to {most:,} tokens,"
            yield f"workloads[{index}]", f"{message} max_model_len is {length:,}"


# Rule, the vLLM function that enforces it.
RULES: tuple[tuple[Rule, str], ...] = (
    (attention_heads, _VERIFY),
    (kv_heads, "QKVParallelLinear"),
    (mlp_width, "ColumnParallelLinear"),
    (vocabulary, "VocabParallelEmbedding"),
    (stages, "get_pp_indices"),
    (dense_experts, "_verify_with_expert_parallelism"),
    (decode_context, "_validate_parallel_config"),
    (decode_context_heads, _VERIFY),
    (positions, "get_and_verify_max_len"),
    (batched_tokens, "verify_max_model_len"),
    (request_lengths, ""),
)


def broken_rules(spec: Spec, shape: ModelShape | None) -> Iterator[Violation]:
    """Every rule that the spec breaks; without a shape, only those that need none."""
    for key, message in devices(spec, shape):
        yield Violation("devices", key, message, "__post_init__")
    if shape is None:
        return
    for rule, source in RULES:
        for key, message in rule(spec, shape):
            yield Violation(rule.__name__, key, message, source)
