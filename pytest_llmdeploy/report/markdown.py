"""The report for a change request: Markdown, as GitHub and GitLab render it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from pytest_llmdeploy.evidence import Row, Status, Verdict
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.plan.drawing import to_mermaid
from pytest_llmdeploy.report import plan_tables
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.comparison import lines
from pytest_llmdeploy.report.letters import clean
from pytest_llmdeploy.report.plan_tables import Table
from pytest_llmdeploy.report.terminal import alike, by_family, counts, duration
from pytest_llmdeploy.units import show

_MOST_ALTERNATIVES = 16
# Mermaid draws no more in a page of GitHub's.
_MOST_RANKS = 64
_MARKS = {
    Status.PASS: "✅",
    Status.FAIL: "❌",
    Status.ERROR: "❌",
    Status.INVALID: "⚠️",
    Status.INCONCLUSIVE: "⚠️",
    Status.SKIPPED: "⚠️",
    Status.WAIVED: "☑️",
}
_MEANINGS = {
    Verdict.READY: "Every requirement is met, or waived by name.",
    Verdict.PLAN_PASSES: "The plan meets what can be checked without a server.",
    Verdict.NOT_READY: "At least one requirement is not met.",
    Verdict.UNDECIDED: "Nothing failed, but not everything was decided.",
}
_NEEDS = {
    "plan": "the spec alone",
    "host": "the machine with the devices",
    "live": "the running server",
    "stopped": "the end of the server",
}
# A mark of Markdown, HTML, or a person's name.
_SPECIAL = re.compile(r"[\\`*\[\]<|&~@#]")
_METRICS = ("ttft", "tpot", "itl", "e2el", "stall")


def render(checklists: Sequence[Checklist]) -> str:
    """The text of the report, one chapter for each spec."""
    chapters = (_chapter(number, checklist) for number, checklist in enumerate(checklists, 1))
    return "\n\n".join("\n\n".join(filter(None, blocks)) for blocks in chapters) + "\n"


def _chapter(number: int, checklist: Checklist) -> Iterator[str]:
    yield f"# {_text(checklist.name)}: {checklist.verdict}"
    if checklist.broken:
        yield "The file is not a valid spec:"
        yield _fenced("text", checklist.broken)
        return
    yield f"**{_summary(checklist)}.** {_MEANINGS[checklist.verdict]}"
    plan = checklist.context.plan
    if plan:
        yield _deployment(plan)
    yield "## Conclusion and recommendations"
    yield from _conclusion(checklist)
    yield "## Checklist"
    notes = {row.id: f"[^{number}-{place}]" for place, row in enumerate(checklist.rows, 1)}
    yield _checklist(checklist.rows, notes)
    if checklist.context.unchecked:
        yield "## Not checked in this run"
        yield _unchecked(checklist)
    if checklist.changes is not None:
        yield "## Changed since the baseline"
        yield _bullets(map(_text, lines(checklist.changes))) or "Nothing."
    if traffic := checklist.facts.get("traffic"):
        yield "## Measured"
        yield _measured(traffic)
    if plan:
        yield from _planned(plan)
    if checklist.context.launch:
        yield "## Launch command"
        yield _fenced("sh", checklist.context.launch)
    yield from _graph(checklist)
    yield "\n".join(f"{notes[row.id]}: {_evidence(row)}" for row in checklist.rows)


def _summary(checklist: Checklist) -> str:
    times = ", ".join(f"{name} {duration(spent)}" for name, spent in checklist.seconds.items())
    return f"{counts(checklist)} ({times})" if times else counts(checklist)


def _deployment(plan: Plan) -> str:
    spec = plan.spec
    layout = plan_tables.strategy(spec.parallel)
    devices = f"{plan.devices} of {plan.available} × {spec.hardware.device.name}"
    return f"{_text(spec.model.id)}, {layout}, on {_text(devices)}."


def _conclusion(checklist: Checklist) -> Iterator[str]:
    """What to change, worst first; who waived what; what is said of the strategy."""
    points = [*_changes(checklist), *map(_text, checklist.repairs)]
    points += [
        f"{_text(row.item)} was waived: {_text(row.evidence.get('waived', ''))}"
        for row in checklist.rows
        if row.status is Status.WAIVED
    ]
    if checklist.context.unchecked:
        count = len(checklist.context.unchecked)
        points.append(f"{count} requirements were not checked in this run; they are listed below")
    if plan := checklist.context.plan:
        points += _on_strategy(plan)
    yield _bullets(points or ["Nothing needs to be changed"])


def _changes(checklist: Checklist) -> Iterator[str]:
    for rows in alike(checklist.rows):
        first = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        hints = "; ".join(dict.fromkeys(row.hint for row in rows if row.hint))
        required = f", required: {first.requirement}" if first.requirement else ""
        text = _text(f"{first.item}{more}: {first.result}{required}")
        yield f"**{first.status}** {text}{f' → {_text(hints)}' if hints else ''}"


def _on_strategy(plan: Plan) -> Iterator[str]:
    ranked = plan.alternatives
    declared = next((one for one in ranked if one.declared), None)
    if declared is None or not ranked:
        return
    name = plan_tables.strategy(declared.parallel)
    best, among = ranked[0], f"{len(ranked)} strategies considered"
    if declared is best:
        yield f"{name} is predicted to serve the most of {among}"
    elif best.place and declared.place and declared.regret is not None:
        lost = show(declared.regret, "fraction")
        other = plan_tables.strategy(best.parallel)
        yield f"{name} is place {declared.place} of {among}, {lost} behind {other}"


def _checklist(rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    cells = [
        (
            _text(row.item) + notes[row.id],
            _text(row.requirement),
            _text(row.result),
            f"{_MARKS[row.status]} {row.status}",
        )
        for family in by_family(rows)
        for row in family
    ]
    return _github(("Item", "Requirement", "Result", "Status"), cells)


def _unchecked(checklist: Checklist) -> str:
    rows = [
        (_text(one.item), _text(one.requirement), _NEEDS[one.phase])
        for one in checklist.context.unchecked
    ]
    return _github(("Item", "Requirement", "Needs"), rows)


def _measured(traffic: Mapping[str, Any]) -> str:
    rows = []
    for name, found in traffic.items():
        counted = found["counts"]
        served = f"{counted.get('ok', 0):,} of {sum(counted.values()):,} requests"
        rates = f"{found['achieved_rate']:.3g} of {found['offered_rate']:.3g}/s"
        for metric in _METRICS:
            if figures := found.get(metric):
                points = (_ms(figures[point]) for point in ("p50", "p90", "p99", "max"))
                rows.append((_text(name), metric.upper(), *points, served, rates))
                served = rates = ""
    headers = ("Workload", "Metric", "p50", "p90", "p99", "Most", "Answered", "Rate")
    return f"{_github(headers, rows)}\n\nAs observed; what the requests prove is in the checklist."


def _ms(value: float | None) -> str:
    return "-" if value is None else show(value, "ms")


def _planned(plan: Plan) -> Iterator[str]:
    yield "## Strategy"
    if plan.unknown:
        yield f"Not planned: {_text(plan.unknown)}"
        return
    yield _bullets(_text(str(violation)) for violation in plan.violations)
    yield _table(plan_tables.alternatives(plan.alternatives, _MOST_ALTERNATIVES))
    yield _table(plan_tables.layout(plan))
    yield "## Model and its limits"
    yield _github(("Setting", "Value"), [(name, _text(value)) for name, value in _settings(plan)])
    yield "## Memory budget of a device"
    yield _table(plan_tables.memory(plan.spec, plan))
    yield "\n".join(plan_tables.kv_cache(plan.spec, plan))
    if plan.prediction:
        yield "## Predicted latency and throughput"
        yield _table(plan_tables.prediction(plan))


def _settings(plan: Plan) -> Iterator[tuple[str, str]]:
    spec, shape = plan.spec, plan.shape
    if shape:
        kind = f"mixture of {shape.experts} experts" if shape.experts else "dense"
        yield "Architecture", f"{shape.model_type}, {kind}, {len(shape.layers)} layers"
        yield "Attention", f"{shape.heads} heads, {shape.kv_heads} of keys and values"
        yield "Parameters", f"{shape.parameters:,}"
        yield "Positions of the model", f"{shape.positions:,} tokens"
    yield "dtype", spec.model.dtype
    yield "quantization", spec.model.quantization or "as the checkpoint says"
    yield "max_model_len", f"{plan.max_model_len:,} tokens" if plan.max_model_len else "-"
    for name in ("max_num_batched_tokens", "max_num_seqs", "kv_cache_dtype"):
        value = getattr(spec.serve, name)
        yield name, "vLLM's default" if value is None else str(value)
    if spec.hardware.device.platform == "cuda":
        yield "gpu_memory_utilization", show(spec.serve.gpu_memory_utilization, "fraction")


def _graph(checklist: Checklist) -> Iterator[str]:
    graph = checklist.context.graph
    if graph is None or not graph.ranks:
        return
    yield "## Deployment graph"
    if len(graph.ranks) > _MOST_RANKS:
        yield f"Too many ranks to draw: {len(graph.ranks)}. `llmdeploy plan --graph dot` has them."
    else:
        yield _fenced("mermaid", to_mermaid(graph))


def _evidence(row: Row) -> str:
    """What a row rests on."""
    source = row.evidence.get("source")
    facts = {
        "read": source,
        "requests": row.evidence.get("n"),
        "measured": _quantity(row.measured, row.unit),
        "proven": _quantity(row.bound, row.unit) if row.bound != row.measured else None,
        "limit": _quantity(row.limit, row.unit),
        "margin": None if row.margin is None else show(row.margin, "fraction"),
        "key": row.require or None,
    }
    found = [f"{name}: {_text(str(value))}" for name, value in facts.items() if value is not None]
    return "; ".join(found) or "no evidence"


def _quantity(value: float | None, unit: str) -> str | None:
    return None if value is None else show(value, unit)


def _table(table: Table) -> str:
    rows = [[_text(cell) for cell in row] for row in table.rows]
    notes = [_text(note) for note in table.notes]
    return "\n\n".join(filter(None, [_github(table.headers, rows), _bullets(notes)]))


def _github(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _bullets(points: Iterable[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


def _fenced(language: str, text: str) -> str:
    """A block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    body = "\n".join(map(clean, text.rstrip().splitlines()))
    return f"{fence}{language}\n{body}\n{fence}"


def _text(text: str) -> str:
    """A text, which may be a server's, as nothing but that."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", clean(text))
