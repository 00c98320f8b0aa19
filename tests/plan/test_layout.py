"""Who does what: layers per stage, the order of ranks, and their coordinates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.layout import partition, places
from tests.plan.deployments import made

DEALT = [
    (80, 1, (80,)),
    (80, 8, (10,) * 8),
    (10, 4, (2, 3, 3, 2)),
    (11, 4, (3, 3, 3, 2)),
    (9, 4, (2, 2, 3, 2)),
    (5, 2, (3, 2)),
    (2, 4, (0, 1, 1, 0)),
]


@pytest.mark.parametrize(("layers", "stages", "counts"), DEALT)
def test_partition(layers: int, stages: int, counts: tuple[int, ...]) -> None:
    """What is left over goes to the stages before the last, from the back."""
    assert partition(layers, stages) == counts


@given(st.integers(1, 200), st.integers(1, 32))
def test_partition_loses_no_layer(layers: int, stages: int) -> None:
    """All layers are dealt, evenly to within one, and no stage has fewer than the last."""
    counts = partition(layers, stages)
    assert (len(counts), sum(counts)) == (stages, layers)
    assert max(counts) - min(counts) <= 1
    assert counts[-1] == min(counts)


def test_every_rank_in_order() -> None:
    """DP is outermost, then PP, then TP; nodes are filled one after another."""
    spec = made(
        hardware={"devices_per_node": 4, "nodes": 2},
        parallel={"tensor": 2, "pipeline": 2, "data": 2},
    )
    found = [(p.dp, p.pp, p.tp, p.node, p.device, p.layers) for p in places(spec, (40, 40))]
    front, back = (0, 39), (40, 79)
    assert found == [
        (0, 0, 0, 0, 0, front),
        (0, 0, 1, 0, 1, front),
        (0, 1, 0, 0, 2, back),
        (0, 1, 1, 0, 3, back),
        (1, 0, 0, 1, 0, front),
        (1, 0, 1, 1, 1, front),
        (1, 1, 0, 1, 2, back),
        (1, 1, 1, 1, 3, back),
    ]


def test_context_and_expert_coordinates() -> None:
    """PCP lies between PP and TP, DCP within TP, and an expert rank counts DP, PCP and TP."""
    spec = made(
        parallel={
            "tensor": 2,
            "data": 2,
            "prefill_context": 2,
            "decode_context": 2,
            "expert": True,
        }
    )
    found = [(p.dp, p.pcp, p.tp, p.dcp, p.ep) for p in places(spec, None)]
    assert found == [
        (0, 0, 0, 0, 0),
        (0, 0, 1, 1, 1),
        (0, 1, 0, 0, 2),
        (0, 1, 1, 1, 3),
        (1, 0, 0, 0, 4),
        (1, 0, 1, 1, 5),
        (1, 1, 0, 0, 6),
        (1, 1, 1, 1, 7),
    ]


def test_declared_layers_are_taken() -> None:
    """`parallel.layers` replaces vLLM's own partition."""
    spec = made(parallel={"tensor": 4, "pipeline": 2, "layers": [38, 42]})
    spans = [rank.layers for rank in plan(spec).ranks]
    assert spans == [(0, 37)] * 4 + [(38, 79)] * 4
