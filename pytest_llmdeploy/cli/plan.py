"""`llmdeploy plan`: what follows from a spec, without running anything."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.plan.search import Alternative, alternatives
from pytest_llmdeploy.plan.second_opinion import SecondOpinionError
from pytest_llmdeploy.serving.command import LaunchError, flags, launch_text
from pytest_llmdeploy.spec import Spec, SpecError, load_spec


def run(arguments: argparse.Namespace) -> int:
    try:
        spec = load_spec(arguments.spec)
    except SpecError as error:
        raise RefusedError(str(error)) from None
    found = plan(spec)
    try:
        sys.stdout.write(_output(arguments, spec, found))
    except SecondOpinionError as error:
        raise RefusedError(f"--second-opinion: {error}") from None
    return 0 if found.is_feasible and not found.unknown else 1


def _output(arguments: argparse.Namespace, spec: Spec, found: Plan) -> str:
    if arguments.graph:
        return _graph(arguments.graph, spec, found)
    if arguments.repair:
        from pytest_llmdeploy.cli.patch import repair_text  # noqa: PLC0415 - only when asked for
        from pytest_llmdeploy.plan.repair import repairs  # noqa: PLC0415

        return repair_text(spec, repairs(spec))
    ranked = alternatives(spec)
    if arguments.json:
        return json.dumps(plan_json(spec, found, ranked), indent=2, ensure_ascii=False) + "\n"
    from pytest_llmdeploy.cli.page import plan_page  # noqa: PLC0415

    said = "" if arguments.second_opinion is None else _second_opinion(arguments, found)
    return plan_page(spec, found, ranked, launch_text(spec)) + said


def _second_opinion(arguments: argparse.Namespace, plan: Plan) -> str:
    """What aiconfigurator-core expects of every workload, or why it has nothing to say."""
    import logging  # noqa: PLC0415 - it says much while it loads its tables

    from pytest_llmdeploy.plan.planner import second_opinion  # noqa: PLC0415
    from pytest_llmdeploy.plan.second_opinion import SecondOpinion  # noqa: PLC0415

    logging.disable(logging.WARNING)
    try:
        opinion = SecondOpinion(arguments.second_opinion or plan.spec.model.id)
        found = second_opinion(opinion, plan)
    finally:
        logging.disable(logging.NOTSET)
    lines = [
        f"  {name}: TTFT {said.ttft_ms.value:.1f} ms, TPOT {said.tpot_ms.value:.1f} ms"
        for name, said in found.items()
    ]
    return "\n".join(["", "Second opinion, by aiconfigurator-core", *lines, ""])


def plan_json(spec: Spec, found: Plan, ranked: tuple[Alternative, ...]) -> dict[str, Any]:
    """The plan as in the JSON report, with vLLM's arguments (null where it takes no such)."""
    try:
        arguments: list[str] | None = ["serve", spec.model.id, *flags(spec)]
    except LaunchError:
        arguments = None
    entries = [alternative.to_json() for alternative in ranked]
    return {
        "name": spec.name,
        "path": str(spec.source.path),
        "feasible": found.is_feasible and not found.unknown,
        "plan": {**found.to_json(), "alternatives": entries},
        "vllm": arguments,
    }


def _graph(form: str, spec: Spec, found: Plan) -> str:
    from pytest_llmdeploy.plan.drawing import to_dot, to_mermaid  # noqa: PLC0415
    from pytest_llmdeploy.plan.graph import deployment_graph  # noqa: PLC0415

    graph = deployment_graph(spec, found)
    if form == "json":
        return json.dumps(graph.to_json(), indent=2, ensure_ascii=False) + "\n"
    return to_dot(graph) if form == "dot" else to_mermaid(graph)
