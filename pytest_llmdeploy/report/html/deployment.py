"""The deployment graph, drawn from left to right: request, replicas, ranks by stage, response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from pytest_llmdeploy.plan.graph import (
    Graph,
    edge_label,
    group_label,
    rank_id,
)
from pytest_llmdeploy.plan.model import Rank
from pytest_llmdeploy.report.html.drawing import Figure, labelled

_MOST_RANKS = 64
_MOST_COPIES = 8
_MOST_LINES = 200
_NAMED = 8
_BOX = (108, 36)
_GAP = 8
_HEAD = 40
_ABREAST = 2
_WAY = 60
_END = 76


def deployment(graph: Graph) -> Iterator[Figure]:
    """The drawing; above 64 ranks a stage is one box, and the first 8 replicas stand for all."""
    if not graph.ranks:
        return
    stages = len({rank.pp for rank in graph.ranks})
    ways: dict[str, list[str]] = {}
    for edge in graph.edges:
        ways.setdefault(edge_label(edge), []).append(f"{edge.source} to {edge.target}")
    table = [["way", text, _some(pairs)] for text, pairs in ways.items()]
    table += [
        ["group", ": ".join(group_label(group)), _some([*map(rank_id, group.ranks)])]
        for group in graph.groups[:_MOST_LINES]
    ]
    title = "Deployment graph"
    yield Figure(
        title=title,
        svg=labelled(_svg(graph), title),
        says=f"ranks: {len(graph.ranks)}, replicas: {len(graph.copies)}, stages: {stages}, "
        f"groups: {len(graph.groups)}",
        columns=["Kind", "What is sent", "Between"],
        table=table,
    )


def _some(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _svg(graph: Graph) -> Markup:
    summarised = len(graph.ranks) > _MOST_RANKS
    copies = graph.copies[:_MOST_COPIES] if summarised else graph.copies
    frames = {copy: list(graph.stages(copy).items()) for copy in copies}
    boxes = 1 if summarised else max(len(r) for stages in frames.values() for _, r in stages)
    lines = -(-boxes // _ABREAST)
    width = _ABREAST * (_BOX[0] + _GAP) + _GAP
    height = _HEAD + lines * (_BOX[1] + _GAP)
    columns = max(map(len, frames.values()))
    left = _END + _WAY + _END + _WAY
    right = left + columns * (width + _WAY)
    tall = len(copies) * (height + _GAP * 2)
    parts: list[Markup] = [_oval(0, tall / 2, "request"), _oval(right, tall / 2, "response")]
    for number, (copy, stages) in enumerate(frames.items()):
        top = number * (height + _GAP * 2) + _GAP
        middle = top + height / 2
        parts.append(_oval(_END + _WAY, middle, f"replica {copy}"))
        parts.append(_arrow(_END, tall / 2, _END + _WAY, middle))
        starts = [left + index * (width + _WAY) for index in range(len(stages))]
        for start, (stage, ranks) in zip(starts, stages, strict=True):
            parts += _frame(graph, start, top, (width, height), stage, ranks, summarised)
        parts.append(_arrow(_END + _WAY + _END, middle, left, middle))
        parts += [_arrow(one + width, middle, other, middle) for one, other in pairwise(starts)]
        parts.append(_arrow(starts[-1] + width, middle, right, tall / 2))
    if more := len(graph.copies) - len(copies):
        parts.append(_text(left, tall + 14, f"and {more} more replicas, laid out likewise"))
    size = Markup('<svg viewBox="0 0 {} {}" width="{}" font-size="11" font-family="sans-serif">')
    head = size.format(right + _END + 2, tall + 24, right + _END + 2)
    return head + Markup("").join(parts) + Markup("</svg>")


def _frame(
    graph: Graph,
    left: float,
    top: float,
    size: tuple[float, float],
    stage: int,
    ranks: Sequence[Rank],
    summarised: bool,
) -> Iterator[Markup]:
    """A stage: what its ranks say to each other on its frame, and the ranks in it."""
    yield _rect(left, top, *size, dashed=True)
    layers = ranks[0].layers
    span = f": layers {layers[0]} to {layers[1]}" if layers else ""
    yield _text(left + _GAP, top + 14, f"stage {stage}{span}")
    inside = {rank.rank for rank in ranks}
    said: dict[str, dict[str, None]] = {}
    for group in graph.groups:
        if inside & set(group.ranks):
            axis = group.axis.replace("_", " ")
            said.setdefault(axis, {})[group.collective] = None
    talk = "; ".join(f"{axis}: {', '.join(names)}" for axis, names in said.items())
    yield _text(left + _GAP, top + 29, talk if len(talk) <= 42 else f"{talk[:41]}…")  # noqa: PLR2004
    shown = ranks[:1] if summarised else ranks
    for place, rank in enumerate(shown):
        line, column = divmod(place, _ABREAST)
        x = left + _GAP + column * (_BOX[0] + _GAP)
        y = top + _HEAD + line * (_BOX[1] + _GAP)
        yield _rect(x, y, *_BOX)
        many = summarised and len(ranks) > 1
        name = f"ranks {ranks[0].rank} to {ranks[-1].rank}" if many else str(rank)
        where = f"{len(ranks)} devices" if many else f"node {rank.node}, device {rank.device}"
        yield _text(x + 6, y + 15, name)
        yield _text(x + 6, y + 29, where)


def _rect(x: float, y: float, width: float, height: float, *, dashed: bool = False) -> Markup:
    dash = Markup(' stroke-dasharray="4 3"') if dashed else Markup("")
    shape = Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" rx="4" fill="none" stroke="currentColor"{}/>'
    )
    return shape.format(x, y, width, height, dash)


def _oval(x: float, y: float, text: str) -> Markup:
    shape = Markup(
        '<rect x="{}" y="{}" width="{}" height="26" rx="13" fill="none" stroke="currentColor"/>'
    )
    word = Markup('<text x="{}" y="{}" text-anchor="middle" fill="currentColor">{}</text>')
    return shape.format(x + 1, y - 13, _END) + word.format(x + _END / 2, y + 4, text)


def _arrow(x: float, y: float, to_x: float, to_y: float) -> Markup:
    """A line with a head that points to the right, as every way does."""
    line = Markup('<path d="M{} {} L{} {} m-7 -4 l7 4 l-7 4" fill="none" stroke="currentColor"/>')
    return line.format(x + 1, y, to_x, to_y)


def _text(x: float, y: float, text: str) -> Markup:
    return Markup('<text x="{}" y="{}" fill="currentColor">{}</text>').format(x, y, text)
