"""What tensor and pipeline parallelism split: heads, widths, vocabulary, layers."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmdeploy.plan.rules.given import Broken, flag, variable
from pytest_llmdeploy.plan.rules.widths import widths
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

_PARTITION = "VLLM_PP_LAYER_PARTITION"


def attention_heads(spec: Spec, shape: ModelShape) -> Broken:
    tp = spec.parallel.tensor
    for heads in dict.fromkeys((shape.heads, *(each.heads for each in widths(shape).attentions))):
        if heads % tp:
            yield "parallel.tensor", f"TP {tp}: {heads} attention heads are not divisible by {tp}"


def kv_heads(spec: Spec, shape: ModelShape) -> Broken:
    """MLA has one head, which every rank holds."""
    tp = spec.parallel.tensor
    for heads in dict.fromkeys(each.kv_heads for each in widths(shape).attentions):
        if heads % tp and tp % heads:
            message = f"TP {tp}: {heads} KV heads can be neither split nor replicated {tp} ways"
            yield "parallel.tensor", message


def tensor_widths(spec: Spec, shape: ModelShape) -> Broken:
    tp = spec.parallel.tensor
    for width in widths(shape).plain:
        if width.size % tp:
            yield "parallel.tensor", f"TP {tp}: {width} are not divisible by {tp}"


def tower_widths(spec: Spec, shape: ModelShape) -> Broken:
    """Encoders are split like the decoder, unless each rank is to hold all of them."""
    tp = spec.parallel.tensor
    for width in widths(shape).towers:
        if width.size % tp and flag(spec, "mm_encoder_tp_mode") != "data":
            yield "parallel.tensor", f"TP {tp}: {width} are not divisible by {tp}"


def vocabulary(spec: Spec, shape: ModelShape) -> Broken:
    tp = spec.parallel.tensor
    if shape.padded_vocab % tp:
        message = f"TP {tp}: the padded vocabulary {shape.padded_vocab:,} is not divisible by {tp}"
        yield "parallel.tensor", message


def stages(spec: Spec, shape: ModelShape) -> Broken:
    """A stage without layers has no KV cache, and vLLM divides by the number of its groups."""
    pp, layers = spec.parallel.pipeline, widths(shape).layers
    if pp > layers:
        yield "parallel.pipeline", f"PP {pp}: the model has only {layers} layers"
    for key, split in _declared(spec):
        if split and min(split) < 1 and sum(split) == layers:
            yield key, f"{list(split)}: every stage needs a layer"


def partition(spec: Spec, shape: ModelShape) -> Broken:
    """The layers per stage that the spec gives, in parallel.layers or the variable."""
    pp, layers = spec.parallel.pipeline, widths(shape).layers
    for key, split in _declared(spec):
        if split is None:
            yield key, f"{variable(spec, _PARTITION)!r} is not a list of numbers like 12,12,8"
        elif len(split) != pp or sum(split) != layers:
            yield key, f"{list(split)} are not {layers} layers on {pp} stages"


def _declared(spec: Spec) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Where the layers per stage are declared, and which; None where they can't be read."""
    if spec.parallel.layers is not None:
        yield "parallel.layers", spec.parallel.layers
    elif (text := variable(spec, _PARTITION)) is not None:
        try:
            yield f"serve.env.{_PARTITION}", tuple(map(int, text.split(",")))
        except ValueError:
            yield f"serve.env.{_PARTITION}", None


RULES = (
    (attention_heads, "verify_with_parallel_config"),
    (kv_heads, "QKVParallelLinear"),
    (tensor_widths, "divide"),
    (tower_widths, "divide"),
    (vocabulary, "VocabParallelEmbedding"),
    (stages, "get_kv_cache_config_from_groups"),
    (partition, "get_pp_indices"),
)
