"""The deployment graph: every rank once, no cycle, and the bytes that collectives carry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.drawing import to_dot, to_mermaid
from pytest_llmdeploy.plan.graph import Graph, Group, deployment_graph
from tests.plan.deployments import made

HIDDEN, LAYERS, VOCAB = 8192, 80, 128256
MIXTRAL = {"id": "mistralai/Mixtral-8x7B-v0.1", "dtype": "bfloat16"}


def graph(**changes: Any) -> Graph:
    spec = made(**changes)
    return deployment_graph(spec, plan(spec))


def moe(**changes: Any) -> Graph:
    """The graph of a model with 8 routed experts in each of 32 layers, 2 for a token."""
    return graph(model=MIXTRAL, **changes)


def carried(found: Graph, what: str) -> list[Group]:
    return [group for group in found.groups if group.what == what]


def test_tensor_parallel_sums() -> None:
    """Llama 70B on TP 8: two all-reduces of 8,192 × 2 bytes in each of 80 layers."""
    (sums,) = carried(graph(), "attention and MLP")
    assert (sums.collective, sums.axis, sums.ranks) == ("all-reduce", "tensor", tuple(range(8)))
    assert (sums.calls, sums.message_bytes) == (2 * LAYERS, HIDDEN * 2)
    assert sums.bytes_per_token == 2_621_440


def test_the_other_collectives_of_a_tensor_group() -> None:
    """The embedding is summed once, and the logits of a sampled token are gathered."""
    found = graph(model={"dtype": "float16"})
    (embedding,), (logits,) = (
        carried(found, "embedding"),
        carried(found, "logits of a sampled token"),
    )
    assert (embedding.collective, embedding.bytes_per_token) == ("all-reduce", HIDDEN * 2)
    assert (logits.collective, logits.bytes_per_token) == ("all-gather", VOCAB * 2)
    assert len(found.groups) == 3


def test_pipeline_stages_hand_over() -> None:
    """On TP 4 × PP 2 each rank sends a quarter of hidden state and residual to its like, which
    gathers the rest from its group.
    """
    found = graph(parallel={"tensor": 4, "pipeline": 2})
    sent = [edge for edge in found.edges if edge.collective == "point-to-point"]
    assert [(edge.source, edge.target) for edge in sent] == [
        (f"rank{rank}", f"rank{rank + 4}") for rank in range(4)
    ]
    assert {edge.bytes_per_token for edge in sent} == {2 * HIDDEN * 2 / 4}
    (gathered,) = carried(found, "from the stage before")
    assert (gathered.ranks, gathered.bytes_per_token) == ((4, 5, 6, 7), 2 * HIDDEN * 2)
    assert [sums.calls for sums in carried(found, "attention and MLP")] == [80, 80]
    assert carried(found, "embedding")[0].ranks == (0, 1, 2, 3)
    assert carried(found, "logits of a sampled token")[0].ranks == (4, 5, 6, 7)


def test_one_device_says_nothing_to_others() -> None:
    """Without parallelism there is the way of the request, and no collective."""
    found = graph(parallel={"tensor": 1}, hardware={"devices_per_node": 1})
    assert found.groups == ()
    ways = [(edge.source, edge.target) for edge in found.edges]
    assert ways == [("request", "replica0"), ("replica0", "rank0"), ("rank0", "response")]


def test_dense_copies_are_independent() -> None:
    """The front end has two copies of Llama to choose from; they exchange nothing."""
    found = graph(parallel={"tensor": 4, "data": 2})
    assert [edge.target for edge in found.edges if edge.collective == "route"] == [
        "replica0",
        "replica1",
    ]
    assert {group.ranks for group in found.groups} == {(0, 1, 2, 3), (4, 5, 6, 7)}


def test_experts_of_one_copy_are_summed() -> None:
    """Without data parallelism every rank has every token: expert parallelism adds no exchange."""
    for expert in (False, True):
        found = moe(parallel={"tensor": 8, "expert": expert})
        assert {group.axis for group in found.groups} == {"tensor"}
        assert carried(found, "attention and MLP")[0].calls == 2 * 32


def test_experts_over_copies_gather_and_scatter() -> None:
    """With vLLM's default backend, tokens are gathered from all copies and scattered back."""
    found = moe(parallel={"tensor": 1, "data": 8, "expert": True})
    (there,), (back) = carried(found, "to the experts"), carried(found, "from the experts")
    assert (there.collective, there.axis, there.ranks) == ("all-gather", "data", tuple(range(8)))
    assert [group.collective for group in back] == ["reduce-scatter"]
    assert there.bytes_per_token == 32 * 4096 * 2


def test_tokens_are_divided_before_the_experts() -> None:
    """TP 2 × DP 4 with EP: the exchange is among all eight, the sum of the MLP becomes a gather."""
    found = moe(parallel={"tensor": 2, "data": 4, "expert": True})
    (there,) = carried(found, "to the experts")
    assert (there.axis, there.ranks) == ("expert", tuple(range(8)))
    assert {group.calls for group in carried(found, "attention and MLP")} == {32}
    assert [group.ranks for group in carried(found, "after the experts")] == [
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
    ]


def test_all_to_all_sends_to_the_chosen_experts_only() -> None:
    """A DeepEP backend sends a token to at most as many ranks as it has experts."""
    serve = {"all2all_backend": "deepep_high_throughput"}
    found = moe(parallel={"tensor": 1, "data": 8, "expert": True}, serve=serve)
    (there,) = carried(found, "to the experts")
    assert (there.collective, there.axis) == ("all-to-all", "expert")
    assert there.bytes_per_token == 32 * 2 * 4096 * 2


def test_split_experts_over_copies() -> None:
    """Without expert parallelism, copies share the parts of each expert and exchange all tokens."""
    found = moe(parallel={"tensor": 4, "data": 2})
    assert [group.ranks for group in carried(found, "to the experts")] == [
        (0, 4),
        (1, 5),
        (2, 6),
        (3, 7),
    ]
    assert {group.calls for group in carried(found, "attention and MLP")} == {2 * 32}


def test_context_parallel_groups_are_named() -> None:
    """Who is in them is known; what they carry depends on the backend, and is not said."""
    parallel = {"tensor": 4, "prefill_context": 2, "decode_context": 2}
    found = graph(parallel=parallel)
    groups: dict[str, list[Any]] = {group.axis: [] for group in found.groups}
    for group in found.groups:
        groups[group.axis].append(group.ranks)
        assert (group.bytes_per_token is None) == (group.axis != "tensor")
    assert groups["decode_context"] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert groups["prefill_context"] == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_an_unknown_model_still_has_a_graph() -> None:
    """Ranks and groups follow from the strategy; bytes are not known."""
    found = graph(model={"id": "nobody/knows"}, parallel={"tensor": 4, "pipeline": 2})
    assert len(found.ranks) == 8
    assert all(group.message_bytes is None for group in found.groups)
    assert "a token" not in to_dot(found).replace("sampled token", "")


layouts = st.fixed_dictionaries(
    {
        "tensor": st.sampled_from([1, 2, 3, 4]),
        "pipeline": st.integers(1, 4),
        "data": st.integers(1, 3),
        "prefill_context": st.integers(1, 2),
        "decode_context": st.integers(1, 2),
        "expert": st.booleans(),
    }
)
models = st.sampled_from([{}, MIXTRAL, {"id": "nobody/knows"}])


@settings(max_examples=60, deadline=None)
@given(layouts, models)
def test_any_layout_is_a_graph_without_cycles(
    parallel: Mapping[str, Any], model: Mapping[str, Any]
) -> None:
    """Every rank is there once and is reached by the request, in whatever layout; the drawings are
    well-formed and hold the same nodes.
    """
    found = graph(parallel=dict(parallel), model=dict(model))
    count = (
        parallel["tensor"] * parallel["pipeline"] * parallel["data"] * parallel["prefill_context"]
    )
    assert sorted(rank.rank for rank in found.ranks) == list(range(count))
    assert len(set(found.nodes)) == len(found.nodes) == count + parallel["data"] + 2
    before: dict[str, set[str]] = {node: set() for node in found.nodes}
    for edge in found.edges:
        before[edge.target].add(edge.source)
    order = list(TopologicalSorter(before).static_order())
    assert set(order) == set(found.nodes)
    assert [node for node in order if not before[node]] == ["request"]
    assert json.loads(json.dumps(found.to_json()))["name"] == "llama"
    for group in found.groups:
        assert len(group.ranks) > 1
        assert {found.ranks[rank].pp for rank in group.ranks} == {group.stage}
    nodes, edges = dot(to_dot(found))
    assert nodes - {f"group{index}" for index in range(len(found.groups))} == set(found.nodes)
    assert {(edge.source, edge.target) for edge in found.edges} <= edges
    assert mermaid(to_mermaid(found)) >= set(found.nodes)


QUOTED = r'"(?:[^"\\]|\\.)*"'
ATTRIBUTES = rf"\[\w+=(?:{QUOTED}|\w+)(?:, \w+=(?:{QUOTED}|\w+))*\]"


def dot(text: str) -> tuple[set[str], set[tuple[str, str]]]:
    """The nodes and edges of a DOT text, after its grammar: every statement is one that we know."""
    lines = [line.strip() for line in text.splitlines()]
    assert (lines[0], lines[-1]) == ("digraph {", "}")
    assert text.count("{") == text.count("}")
    nodes, edges, depth = set(), set(), 0
    for line in lines[1:-1]:
        if line == "}":
            depth -= 1
        elif re.fullmatch(r"subgraph cluster_\w+ \{", line):
            depth += 1
        elif match := re.fullmatch(rf"(\w+) -> (\w+|\{{[\w ]+\}}) {ATTRIBUTES};", line):
            edges |= {(match[1], target) for target in match[2].strip("{}").split()}
        elif match := re.fullmatch(rf"(\w+) {ATTRIBUTES};", line):
            nodes.add(match[1])
        else:
            assert re.fullmatch(
                rf"(\w+=({QUOTED}|\w+)|node {ATTRIBUTES})(; (\w+=\w+|node {ATTRIBUTES}))*;"
                rf"|request {ATTRIBUTES}; response {ATTRIBUTES};",
                line,
            ), line
            nodes |= set(re.findall(r"(request|response) \[", line))
        assert depth in {0, 1}
    assert depth == 0
    return nodes, edges


def mermaid(text: str) -> set[str]:
    """The nodes of a Mermaid flowchart in which every line is one that we know."""
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "flowchart LR"
    label, nodes = r'"[^"\n]*"', set()
    for line in lines[1:]:
        match = re.fullmatch(
            rf"(\w+)(?:\[{label}\]|\(\[{label}\]\)|\{{\{{{label}\}}\}})"
            rf"|(\w+) -->\|{label}\| (\w+)|group\d+ -\.- \w+(?: & \w+)*"
            rf"|subgraph \w+\[{label}\]|end",
            line,
        )
        assert match, line
        nodes |= {node for node in match.groups() if node}
    assert lines.count("end") == sum(line.startswith("subgraph") for line in lines)
    return nodes


@pytest.mark.parametrize("name", ['a "b"', "a\\", 'a\\"', "a]; b -> c"])
def test_names_are_quoted(name: str) -> None:
    """A spec may be called anything that YAML holds in a line."""
    found = graph()
    renamed = Graph(name, found.ranks, found.edges, found.groups)
    assert dot(to_dot(renamed)) == dot(to_dot(found))
    assert mermaid(to_mermaid(renamed)) == mermaid(to_mermaid(found))
