"""Routed experts: split like other weights, or with expert parallelism dealt out whole."""

from __future__ import annotations

from pytest_llmdeploy.plan.rules.given import Broken, flag, setting
from pytest_llmdeploy.plan.rules.widths import widths
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

# Whose model code in vLLM 0.32 wants at least one expert for each tensor-parallel rank.
_ONE_FOR_EACH_RANK = frozenset(
    {
        "cohere2_moe",
        "ernie4_5_moe",
        "exaone_moe",
        "lfm2_moe",
        "mimo_v2_flash",
        "minimax_m2",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
        "step3_text",
        "step3p5",
    }
)


def dense_experts(spec: Spec, shape: ModelShape) -> Broken:
    if spec.parallel.expert and not shape.experts:
        message = f"expert parallelism: {shape.model_type} is a dense model, it has no experts"
        yield "parallel.expert", message


def expert_widths(spec: Spec, shape: ModelShape) -> Broken:
    """Without expert parallelism, each expert is split over all copies."""
    ways, parallel = spec.parallel.expert_tensor, spec.parallel
    for width in widths(shape).expert:
        if width.size % ways:
            split = f"DP {parallel.data} × TP {parallel.tensor}"
            if parallel.prefill_context > 1:
                split = f"DP {parallel.data} × PCP {parallel.prefill_context} × {split[7:]}"
            message = f"{split} splits every expert {ways} ways, {width} are not divisible by it"
            yield "parallel.expert" if parallel.data > 1 else "parallel.tensor", message


def experts_for_ranks(spec: Spec, shape: ModelShape) -> Broken:
    tp = spec.parallel.tensor
    if shape.model_type in _ONE_FOR_EACH_RANK and 0 < shape.experts < tp:
        message = f"TP {tp} is greater than the {shape.experts} experts of {shape.model_type}"
        yield "parallel.tensor", message


def expert_balancing(spec: Spec) -> Broken:
    """EPLB holds some experts twice, and moves them between the ranks of expert parallelism."""
    redundant = _redundant(spec)
    if not flag(spec, "enable_eplb"):
        if redundant:
            message = f"num_redundant_experts is {redundant}, but enable_eplb is not on"
            yield "serve.eplb_config", message
    elif spec.hardware.device.platform == "cpu":
        yield "serve.enable_eplb", "EPLB is for GPUs, the device is cpu"
    elif not spec.parallel.expert:
        yield "serve.enable_eplb", "EPLB needs expert parallelism: set parallel.expert"
    elif spec.parallel.expert_size == 1:
        yield "serve.enable_eplb", f"EPLB needs more than one rank, found {spec.parallel}"


def even_experts(spec: Spec, shape: ModelShape) -> Broken:
    """With EPLB, every rank holds as many experts."""
    if not flag(spec, "enable_eplb") or not spec.parallel.expert:
        return
    ranks, redundant = spec.parallel.expert_size, _redundant(spec)
    if (shape.experts + redundant) % ranks:
        message = f"EPLB: {shape.experts} experts and {redundant} redundant ones are not divisible"
        yield "serve.eplb_config", f"{message} by {ranks} ranks"


def outside_balancer(spec: Spec, shape: ModelShape) -> Broken:
    """Copies of a dense model know nothing of each other: they are servers of their own."""
    outside = (
        flag(spec, "data_parallel_external_lb") or flag(spec, "data_parallel_rank") is not None
    )
    if outside and spec.parallel.data > 1 and not shape.experts:
        message = f"{shape.model_type} is a dense model: start its copies as servers of their own"
        yield "serve.data_parallel_external_lb", message


def _redundant(spec: Spec) -> int:
    found = setting(spec, "eplb_config", "num_redundant_experts")
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


RULES = ((expert_balancing, "_validate_parallel_config"),)
LAYOUT_RULES = (
    (dense_experts, "_verify_with_expert_parallelism"),
    (expert_widths, "FusedMoEConfig"),
    (experts_for_ranks, "Qwen3MoeSparseMoeBlock"),
    (even_experts, "FusedMoEFactory"),
)
SHAPE_RULES = ((outside_balancer, "create_engine_config"),)
