"""The figures of a checklist, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.html import observed, planned
from pytest_llmdeploy.report.html.deployment import deployment
from pytest_llmdeploy.report.html.drawing import Figure


def figures(checklist: Checklist) -> Iterator[Figure]:
    """All that is known enough for; none of a spec that is broken."""
    for name, requests in _measured(checklist.facts.get("traffic") or {}):
        yield from observed.distributions(checklist, name, requests)
        yield from observed.timeline(name, requests)
    looks = checklist.facts.get("devices") or {}
    yield from observed.devices(looks.get("under_load") or {})
    if plan := checklist.context.plan:
        yield from planned.memory(checklist, plan)
        yield from planned.strategies(plan)
    if graph := checklist.context.graph:
        yield from deployment(graph)


def _measured(traffic: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, found in traffic.items():
        for what, part in ((name, found), (f"{name}, at capacity", found.get("at_capacity") or {})):
            if requests := part.get("requests"):
                yield what, requests
