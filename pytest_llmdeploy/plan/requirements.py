"""Requirements that need no server, as predicates on a plan.

The plan checks report them, preflight consults them, and a search over strategies can use them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.plan.goal import tightest
from pytest_llmdeploy.plan.memory import kv_cache_bytes
from pytest_llmdeploy.plan.model import Plan
from pytest_llmdeploy.plan.search import declared
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.spec.require import BalanceRequire
from pytest_llmdeploy.units import Bytes, Duration, Fraction, Rate, show
from pytest_llmdeploy.verdict import BalanceRule, Readings, Rule, Spread

_SOURCE = "calculated from the spec"
_PREDICTED = "predicted by the plan's latency model"


def judgements(spec: Spec, plan: Plan) -> Mapping[str, Judgement]:
    """Every requirement of `spec` that needs no server and no search, by its key."""
    required, found = spec.require, {"feasible": feasible(plan)}
    memory, cache = required.memory, required.kv_cache
    if required.devices is not None:
        found["devices"] = device_count(plan, spec, required.devices)
    if memory.max_utilization is not None:
        found["memory.max_utilization"] = memory_utilization(plan, spec, memory.max_utilization)
    if memory.min_headroom is not None:
        found["memory.min_headroom"] = memory_headroom(plan, memory.min_headroom)
    if cache is not None:
        found["kv_cache"] = kv_capacity(
            plan, spec, cache.concurrent_sequences, cache.tokens_per_sequence
        )
    found.update(_balances(plan, required.balance))
    for workload in spec.workloads:
        if workload.rate is not None:
            found[f"workloads.{workload.name}.rate"] = decidable(spec, workload)
        if workload.name in plan.prediction:
            for metric, limit in tightest(workload).items():
                key = f"workloads.{workload.name}.require.{metric}"
                found[key] = within_reach(plan, workload, metric, Duration(limit))
    return found


def _balances(plan: Plan, required: BalanceRequire) -> Iterator[tuple[str, Judgement]]:
    if required.layers is not None:
        yield "balance.layers", layer_balance(plan, required.layers)
    if required.experts is not None:
        yield "balance.experts", experts_balance(plan, required.experts)


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


def kv_capacity(plan: Plan, spec: Spec, sequences: int, tokens: int | None) -> Judgement:
    """The KV caches of all copies hold so many sequences of so many tokens (default:
    max_model_len) at once.
    """
    tokens = tokens or plan.max_model_len
    requirement = f"{sequences:,} × {tokens or 0:,} tokens"
    if plan.kv_cache is None or tokens is None:
        return _error(requirement, _why_unknown(plan))
    low, high = (held * spec.parallel.data for held in plan.kv_cache.sequences(tokens))
    held = f"{low:,} × {tokens:,}" if low == high else f"{low:,} to {high:,} × {tokens:,}"
    good = True if low >= sequences else False if high < sequences else None
    return judged(
        good,
        requirement,
        held,
        measured=plan.kv_cache.blocks
        / plan.kv_cache.blocks_per_sequence(tokens)
        * spec.parallel.data,
        bound=high if good is False else low,
        limit=sequences,
        unit="sequences",
        margin=((high if good is False else low) - sequences) / sequences,
        evidence={
            "source": _SOURCE,
            "kv_cache_tokens": plan.kv_cache.tokens,
            "copies": spec.parallel.data,
            "needed_utilization": plan.needed_utilization,
        },
        hint=_utilization_hint(plan),
    )


def layer_balance(plan: Plan, required: Fraction) -> Judgement:
    """Every pipeline stage has about as many layers as the mean."""
    counts = {
        f"stage {stage}": Evidence(count, "layers", _SOURCE)
        for stage, count in enumerate(plan.stage_layers or ())
    }
    return _planned(plan, counts).within(required)


def experts_balance(plan: Plan, required: Fraction) -> Judgement:
    """The rank with most routed experts has little more than the mean of its peers."""
    requirement = f"≤ {show(required, 'fraction')} over the mean of the ranks"
    held = {str(rank): rank.experts for rank in plan.ranks if rank.experts is not None}
    if plan.unknown or plan.violations or plan.shape is None:
        return _error(requirement, _why_unknown(plan))
    if not held:
        why = "each rank has a part of every one" if plan.shape.experts else "the model is dense"
        evidence = {"source": _SOURCE, "experts": {}}
        return judged(True, requirement, f"no experts are dealt: {why}", evidence=evidence)
    spread, most = Spread(list(held.values())), max(held, key=held.__getitem__)
    return judged(
        spread.excess <= required,
        requirement,
        f"{show(spread.excess, 'fraction')} ({most} has {held[most]}; {spread})",
        measured=spread.excess,
        bound=spread.excess,
        limit=required,
        unit="fraction",
        margin=(required - spread.excess) / required if required else None,
        evidence={"source": _SOURCE, "experts": held, "busiest": most, **spread.to_json()},
    )


def decidable(spec: Spec, workload: Workload) -> Judgement:
    """The open-loop workload sends enough requests to pass its percentiles, and with all others
    enough to pass a balance of engines that share them evenly.
    """
    found = _decides_percentiles(spec, workload)
    short = _short_of_balance(spec) if found.status is Status.PASS else None
    return short or found


def _decides_percentiles(spec: Spec, workload: Workload) -> Judgement:
    rate = workload.rate or Rate(0)
    window = workload.max_duration.seconds - workload.warmup.seconds
    most = _most_requests(spec)
    offered = min(max(0, int(rate * window)), most)
    rules = dict(_rules(spec, workload))
    if not rules:
        result = f"{offered:,} in {workload.max_duration}"
        evidence = {"source": _SOURCE}
        return judged(True, "no percentile to decide", result, evidence=evidence)
    needed, hardest = max((rule.requests_to_pass(), name) for name, rule in rules.items())
    shortest = show((needed / rate + workload.warmup.seconds) * 1000, "ms")
    return judged(
        offered >= needed,
        f"≥ {needed:,} requests for {hardest}",
        f"{offered:,} in {workload.max_duration}" if offered < most else f"{most:,} may be sent",
        measured=offered,
        bound=offered,
        limit=needed,
        unit="requests",
        margin=(offered - needed) / needed,
        evidence={"source": _SOURCE, "shortest": shortest},
        hint=f"at {workload.rate} set max_duration to {shortest} or more"
        if needed <= most
        else f"set attach.max_requests to {needed:,} or more",
    )


def _rules(spec: Spec, workload: Workload) -> Iterator[tuple[str, Rule]]:
    """How each share of the requests is decided, by what it is called."""
    alpha, burst = round(1 - spec.confidence, 9), float(workload.burst)
    for limits in workload.require.latency.values():
        for percentile in limits:
            yield str(percentile), Rule(percentile.fraction, alpha, alpha, burst)
    if wanted := workload.require.goodput:
        yield "goodput", Rule(float(wanted.share), alpha, alpha, burst)
    for tolerances in workload.require.regression.limits.values():
        for percentile in tolerances:
            # The other half of the error is the baseline's.
            half = Rule(percentile.fraction, alpha / 2, alpha / 2, burst)
            yield f"{percentile} regression", half


def _most_requests(spec: Spec) -> int:
    """So many a run may send, with all its workloads."""
    return spec.attach.max_requests if spec.attach else sys.maxsize


def _short_of_balance(spec: Spec) -> Judgement | None:
    """What is missing to decide the balance of engines; None where that is nothing, or not known
    for there is a closed loop.
    """
    balance = spec.require.balance
    limits = {"requests": balance.requests, "tokens": balance.tokens}
    found = {of: limit for of, limit in limits.items() if limit is not None}
    engines = spec.parallel.data * max(1, len(spec.attach.engines) if spec.attach else 1)
    if not found or any(workload.rate is None for workload in spec.workloads):
        return None
    hardest = min(found, key=found.__getitem__)
    if found[hardest] >= engines - 1:
        return None
    alpha = round(1 - spec.confidence, 9)
    needed = BalanceRule(engines, found[hardest], alpha, alpha).requests_to_pass()
    sent = sum(int((w.rate or 0) * w.max_duration.seconds) for w in spec.workloads)
    offered = min(sent, _most_requests(spec))
    if offered >= needed:
        return None
    return judged(
        False,
        f"≥ {needed:,} requests for balance.{hardest}",
        f"{offered:,} of all workloads",
        measured=offered,
        bound=offered,
        limit=needed,
        unit="requests",
        margin=(offered - needed) / needed,
        evidence={"source": _SOURCE},
        hint="raise max_duration or the rate of a workload"
        if sent < needed
        else f"set attach.max_requests to {needed:,} or more",
    )


def within_reach(plan: Plan, workload: Workload, metric: str, limit: Duration) -> Judgement:
    """The limit is not out of reach: the lowest that is predicted is within it.

    It says nothing of a tail or of queues; those are measured.
    """
    requirement = f"≤ {show(limit, 'ms')} within reach"
    prediction = plan.prediction.get(workload.name)
    if prediction is None:
        return _error(requirement, _why_unknown(plan))
    found = prediction.ttft_ms if metric == "ttft" else prediction.tpot_ms
    spread = show(found.high - found.value, "ms")
    outside = f", outside of what it was fitted on: {', '.join(prediction.outside)}"
    return judged(
        found.low <= limit,
        requirement,
        f"{show(found.value, 'ms')} ± {spread}",
        measured=found.value,
        bound=found.low,
        limit=limit,
        unit="ms",
        margin=(limit - found.low) / limit if limit else None,
        evidence={
            "source": _PREDICTED + (outside if prediction.outside else ""),
            "low": found.low,
            "high": found.high,
            "concurrency": prediction.concurrency,
        },
    )


def strategy(plan: Plan, within: Fraction) -> Judgement:
    """The declared strategy does at most the fraction `within` worse than the best feasible one.

    Beaten by less than the prediction's error, it is not decided.
    """
    requirement = f"within {show(within, 'fraction')} of best"
    found = plan.alternatives
    own, best = declared(found), next((one for one in found if one.place == 1), None)
    feasible_ones = sum(one.feasible for one in found)
    if own is None or best is None or own.throughput is None or best.throughput is None:
        why = own.reasons[0] if own and own.reasons else "nothing is known of the device's speed"
        return _error(requirement, plan.unknown or f"not ranked: {why}")
    regret = own.regret or 0.0
    beaten = own.throughput.high < best.throughput.low * (1 - within)
    unable = best.meets_limits and not own.meets_limits
    good = True if regret <= within and not unable else False if beaten else None
    place = "best" if own is best else f"place {own.place}"
    lost = "" if own is best else f": {show(regret, 'fraction')} less than {best.parallel}"
    return judged(
        good,
        requirement,
        f"{place} of {feasible_ones}{lost}" + (f", {own.reasons[0]}" if unable else ""),
        measured=regret,
        bound=max(0.0, 1 - own.throughput.high / best.throughput.low),
        limit=within,
        unit="fraction",
        margin=(within - regret) / within if within else None,
        evidence={
            "source": _PREDICTED,
            "considered": len(found),
            "best": str(best.parallel),
            "throughput": own.throughput.value,
            "best_throughput": best.throughput.value,
        },
        hint="" if good else f"try {best.parallel}",
    )


def deployable(plan: Plan, spec: Spec) -> Judgement:
    """The spec says enough to deploy: every rank has its device, its layers and its bytes."""
    missing = list(_missing(plan, spec))
    return judged(
        not missing,
        "the spec says enough to deploy",
        "; ".join(missing) or "nothing is missing",
        evidence={"source": _SOURCE, "missing": missing},
        hint=f"add {' and '.join(missing)}",
    )


def _missing(plan: Plan, spec: Spec) -> Iterator[str]:
    if plan.unknown:
        yield "the model's shape (model.config)"
    if spec.hardware.device.total_bytes is None:
        yield "the memory of a device (hardware.device.memory)"
    if spec.hardware.device.platform == "cpu" and kv_cache_bytes(spec) is None:
        yield "the size of the KV cache (serve.kv_cache_memory_bytes)"


def _utilization_hint(plan: Plan) -> str:
    needed = plan.needed_utilization
    if needed is None:
        return ""
    if needed > 1:
        return "more than one device's memory would be needed: use more devices, or fp8"
    return f"gpu_memory_utilization of {math.ceil(needed * 1000) / 1000:g} would hold them"


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
