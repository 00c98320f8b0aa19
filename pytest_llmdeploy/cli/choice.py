"""`llmdeploy init --model`: the strategy that the planner puts first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.document import loaded, yaml_text
from pytest_llmdeploy.cli.draft import Draft
from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.plan.search import Alternative, alternatives
from pytest_llmdeploy.plan.shape import ShapeUnknownError, shape_of
from pytest_llmdeploy.spec import Parallel, Spec, nearest
from pytest_llmdeploy.units import show

# What a node may have, where nobody says it.
_COUNTS = (1, 2, 4, 8)
# What strategies are compared with: requests and limits as the spec proposes them.
_WORKLOAD = {
    "name": "steady",
    "input_tokens": 512,
    "output_tokens": 128,
    "rate": "1/s",
    "require": {"ttft": {"p99": "2s"}, "tpot": {"p50": "50ms"}},
}


def draft_of_choice(
    model: str,
    device: str,
    *,
    devices_per_node: int | None,
    nodes: int | None,
) -> Draft:
    """The spec of `model` on such devices, with the best strategy that fits; with as few of them
    as fit, where `devices_per_node` is not given.

    Raises:
        RefusedError: when nothing fits, with the reason of the most that was tried.
    """
    counts = (devices_per_node,) if devices_per_node else _COUNTS
    reason = ""
    for count in counts:
        hardware = {"device": device, "devices_per_node": count, "nodes": nodes or 1}
        data = {"version": 1, "model": {"id": model}, "hardware": hardware}
        spec = loaded(yaml_text({**data, "workloads": [_WORKLOAD]}))
        try:
            shape_of(spec)
        except ShapeUnknownError:
            return _unknown(data, devices_per_node or 1)
        ranked = alternatives(spec)
        if ranked[0].feasible:
            return _chosen(data, ranked, spec)
        reason = _refusal(ranked)
    most = f"{counts[-1] * (nodes or 1)} × {device}"
    raise RefusedError(f"--model: no strategy fits on {most}: {reason}")


def _refusal(ranked: Sequence[Alternative]) -> str:
    """Why the one over the most devices does not fit."""
    largest = max(ranked, key=lambda one: (one.parallel.devices, one.parallel.tensor))
    return largest.reasons[0] if largest.reasons else "it is not known why"


def _chosen(data: Mapping[str, Any], ranked: Sequence[Alternative], spec: Spec) -> Draft:
    best = ranked[0]
    given = best.parallel.model_dump(mode="json", exclude_defaults=True)
    parallel = {"tensor": best.parallel.tensor, **given}
    fit = [one for one in ranked if one.feasible]
    devices = f"{spec.hardware.devices} × {spec.hardware.device.name}"
    lines = [f"{len(fit)} of {len(ranked)} strategies fit on {devices}.", _why(best)]
    others = (one for one in fit if str(one.parallel) != str(best.parallel))
    if (second := next(others, None)) and second.reasons:
        lines.append(f"The next one is {second.parallel}: {second.reasons[-1]}.")
    lines.append("`llmdeploy plan` shows them all.")
    data = {**data, "parallel": parallel, **_over_nodes(spec, best.parallel)}
    return Draft(data, "the strategy is the planner's choice", remarks={"parallel": lines})


def _over_nodes(spec: Spec, parallel: Parallel) -> Mapping[str, Any]:
    """How the ranks come to the other nodes, which vLLM has to be told."""
    per_node = spec.hardware.devices_per_node
    if parallel.world_size > per_node:
        return {"serve": {"distributed_executor_backend": "ray"}}
    if parallel.devices > per_node:
        return {"serve": {"data_parallel_size_local": per_node // parallel.world_size}}
    return {}


def _why(best: Alternative) -> str:
    if best.throughput is None:
        return "Nothing is known of this device's speed: this is the first one."
    rate = show(best.throughput.value, "1/s")
    return f"This one is predicted to do the most within the limits below: {rate} a device."


def _unknown(data: Mapping[str, Any], devices: int) -> Draft:
    model = data["model"]["id"]
    hint = nearest(model, model_configs())
    hint = f": {hint}" if hint.startswith("did you mean") else ""
    note = f"the model {model!r} is not in the catalogue{hint}"
    hardware = {**data["hardware"], "devices_per_node": devices}
    return Draft(
        {**data, "hardware": hardware, "parallel": {"tensor": devices}},
        "the strategy is not planned, as the model is not known",
        (note,),
        remarks={"parallel": ["adjust: all devices of a node"]},
        proposals={"model": ["config: path/to/config.json  # adjust: then it is planned"]},
    )
