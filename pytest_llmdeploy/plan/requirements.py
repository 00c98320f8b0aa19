"""Requirements that need no server, as predicates on a plan.

The plan checks report them, preflight consults them, and a search over strategies can use them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.plan.model import Plan
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.units import Bytes, Fraction, Rate, show
from pytest_llmdeploy.verdict import Readings, SequentialTest

_SOURCE = "calculated from the spec"


def feasible(plan: Plan) -> Judgement:
    """VLLM would accept the layout, and it fits into memory."""
    requirement = "vLLM accepts the layout and it fits"
    evidence = {"source": _SOURCE, "violations": [str(v) for v in plan.violations]}
    if plan.violations:
        first, *others = map(str, plan.violations)
        more = f" (and {len(others)} more)" if others else ""
        hint = f"change {' or '.join(dict.fromkeys(v.key for v in plan.violations))}"
        return judged(False, requirement, first + more, evidence=evidence, hint=hint)
    if plan.unknown:
        return _error(requirement, plan.unknown)
    return judged(True, requirement, "no rule is broken", evidence=evidence)


def device_count(plan: Plan, spec: Spec, required: int) -> Judgement:
    """The strategy uses exactly the devices that are required, and the hardware has them."""
    kind = spec.hardware.device.name
    return judged(
        plan.devices == required <= plan.available,
        f"{required} = {spec.parallel}",
        f"{plan.devices} used, {plan.available} × {kind}",
        measured=plan.devices,
        bound=plan.devices,
        limit=required,
        evidence={"source": _SOURCE},
    )


def memory_utilization(plan: Plan, spec: Spec, required: Fraction) -> Judgement:
    """What vLLM fills of every device stays within the limit."""
    total = spec.hardware.device.total_bytes
    shares = {
        str(rank): Evidence(rank.used_bytes / total, "fraction", _SOURCE)
        for rank in plan.ranks
        if rank.used_bytes is not None and total
    }
    return _planned(plan, shares).at_most(required, "of each device")


def memory_headroom(plan: Plan, required: Bytes) -> Judgement:
    """What is left of every device is enough."""
    left = {
        str(rank): Evidence(rank.headroom_bytes, "B", _SOURCE)
        for rank in plan.ranks
        if rank.headroom_bytes is not None
    }
    return _planned(plan, left).at_least(required, "on each device")


def kv_capacity(plan: Plan, sequences: int, tokens: int | None) -> Judgement:
    """The KV cache holds so many sequences of so many tokens (default: max_model_len) at once."""
    tokens = tokens or plan.max_model_len
    requirement = f"{sequences:,} × {tokens or 0:,} tokens"
    if plan.kv_cache is None or tokens is None:
        return _error(requirement, _why_unknown(plan))
    low, high = plan.kv_cache.sequences(tokens)
    copies = f"{low:,} × {tokens:,}" if low == high else f"{low:,} to {high:,} × {tokens:,}"
    good = True if low >= sequences else False if high < sequences else None
    return judged(
        good,
        requirement,
        copies,
        measured=plan.kv_cache.tokens / tokens,
        bound=high if good is False else low,
        limit=sequences,
        unit="sequences",
        margin=((high if good is False else low) - sequences) / sequences,
        evidence={"source": _SOURCE, "kv_cache_tokens": plan.kv_cache.tokens},
    )


def layer_balance(plan: Plan, required: Fraction) -> Judgement:
    """Every pipeline stage has about as many layers as the mean."""
    counts = {
        f"stage {stage}": Evidence(count, "layers", _SOURCE)
        for stage, count in enumerate(plan.stage_layers or ())
    }
    return _planned(plan, counts).within(required)


def decidable(spec: Spec, workload: Workload) -> Judgement:
    """The open-loop workload sends enough requests to pass its percentiles."""
    rate = workload.rate or Rate(0)
    window = workload.max_duration.seconds - workload.warmup.seconds
    offered = max(0, int(rate * window))
    percentiles = [p for limits in workload.require.latency.values() for p in limits]
    if not percentiles:
        result = f"{offered:,} in {workload.max_duration}"
        evidence = {"source": _SOURCE}
        return judged(True, "no percentile to decide", result, evidence=evidence)
    hardest = max(percentiles, key=lambda p: p.fraction)
    alpha = round(1 - spec.confidence, 9)
    needed = SequentialTest.of_percentile(hardest.fraction, alpha, alpha).requests_to_pass()
    shortest = show((needed / rate + workload.warmup.seconds) * 1000, "ms")
    return judged(
        offered >= needed,
        f"≥ {needed:,} requests for {hardest}",
        f"{offered:,} in {workload.max_duration}",
        measured=offered,
        bound=offered,
        limit=needed,
        unit="requests",
        margin=(offered - needed) / needed,
        evidence={"source": _SOURCE, "shortest": shortest},
        hint=f"at {workload.rate} set max_duration to {shortest} or more",
    )


def _planned(plan: Plan, entries: Mapping[str, Evidence]) -> Readings:
    if entries:
        return Readings(entries)
    return Readings({"plan": Evidence(None, "", _SOURCE, problem=_why_unknown(plan))})


def _why_unknown(plan: Plan) -> str:
    if plan.unknown:
        return plan.unknown
    if plan.violations:
        return f"not planned: {plan.violations[0]}"
    return "the spec does not say how much memory a device has (hardware.device.memory)"


def _error(requirement: str, result: str) -> Judgement:
    evidence = {"source": _SOURCE}
    return Judgement(status=Status.ERROR, requirement=requirement, result=result, evidence=evidence)
