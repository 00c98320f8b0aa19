"""The figures of a checklist, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.html import observed, planned
from pytest_llmdeploy.report.html.deployment import deployment
from pytest_llmdeploy.report.html.drawing import Figure


def figures(checklist: Checklist) -> Iterator[Figure]:
    """All that is known enough for; none of a spec that is broken."""
    for name, found in (checklist.facts.get("traffic") or {}).items():
        yield from observed.traffic(checklist, name, found)
        yield from observed.traffic(
            checklist, name, found.get("at_capacity") or {}, ", at capacity"
        )
    looks = checklist.facts.get("devices") or {}
    yield from observed.devices(looks.get("under_load") or {})
    if plan := checklist.context.plan:
        yield from planned.memory(checklist, plan)
        yield from planned.strategies(plan)
    if graph := checklist.context.graph:
        yield from deployment(graph)
