"""The deployment graph in the languages that draw it: DOT (Graphviz) and Mermaid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_llmdeploy.plan.graph import (
    REQUEST,
    RESPONSE,
    Graph,
    copy_id,
    edge_label,
    group_label,
    label,
    rank_id,
)


def to_dot(graph: Graph) -> str:
    """The graph in DOT; groups are small nodes with undirected lines to their ranks."""
    return "\n".join(["digraph {", *(f"  {line}" for line in _dot(graph)), "}", ""])


def _dot(graph: Graph) -> Iterator[str]:
    yield f"label={_dot_text([graph.name])}; rankdir=LR; node [shape=box];"
    yield f"{REQUEST} [shape=oval]; {RESPONSE} [shape=oval];"
    for copy in graph.copies:
        yield f"{copy_id(copy)} [label={_dot_text([f'replica {copy}'])}, shape=oval];"
        for stage, ranks in graph.stages(copy).items():
            yield f"subgraph cluster_{copy}_{stage} {{"
            yield f"  label={_dot_text([f'replica {copy}, stage {stage}'])};"
            for rank in ranks:
                yield f"  {rank_id(rank.rank)} [label={_dot_text(label(rank))}];"
            yield "}"
    for edge in graph.edges:
        text = _dot_text([edge_label(edge)])
        yield f"{edge.source} -> {edge.target} [label={text}];"
    for index, group in enumerate(graph.groups):
        yield f"group{index} [label={_dot_text(group_label(group))}, shape=note];"
        targets = " ".join(map(rank_id, group.ranks))
        style = "dir=none, style=dashed, constraint=false"
        yield f"group{index} -> {{{targets}}} [{style}];"


def _dot_text(lines: Iterable[str]) -> str:
    quoted = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(quoted) + '"'


def to_mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart; groups are joined to their ranks by dotted lines."""
    return "\n".join(["flowchart LR", *(f"  {line}" for line in _mermaid(graph)), ""])


def _mermaid(graph: Graph) -> Iterator[str]:
    for copy in graph.copies:
        yield f"{copy_id(copy)}([{_mermaid_text([f'replica {copy}'])}])"
        for stage, ranks in graph.stages(copy).items():
            title = _mermaid_text([f"replica {copy}, stage {stage}"])
            yield f"subgraph stage_{copy}_{stage}[{title}]"
            for rank in ranks:
                yield f"  {rank_id(rank.rank)}[{_mermaid_text(label(rank))}]"
            yield "end"
    for edge in graph.edges:
        yield f"{edge.source} -->|{_mermaid_text([edge_label(edge)])}| {edge.target}"
    for index, group in enumerate(graph.groups):
        yield f"group{index}{{{{{_mermaid_text(group_label(group))}}}}}"
        yield f"group{index} -.- {' & '.join(map(rank_id, group.ranks))}"


def _mermaid_text(lines: Iterable[str]) -> str:
    return '"' + "<br/>".join(line.replace('"', "#quot;") for line in lines) + '"'
