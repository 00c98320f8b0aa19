"""NUMA placement against every order that the devices could have."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.placement import numa_placement
from tests.checks.scenes import gpus


def status(nodes: tuple[int, ...], used: int, size: int) -> Status:
    """What becomes of GPUs on these NUMA nodes, in groups of `size`."""
    fields = {index: {Field.NUMA_NODE: float(node)} for index, node in enumerate(nodes)}
    return numa_placement(gpus((0,) * len(nodes), fields=fields), used, size).status


def spanned(nodes: tuple[int, ...], used: int, size: int) -> int:
    """The nodes of all groups, counted one after the other."""
    return sum(len(set(nodes[start : start + size])) for start in range(0, used, size))


@pytest.mark.parametrize(
    ("nodes", "size", "expected"),
    [
        ((0, 0, 0, 0, 1, 1, 1, 1), 8, Status.PASS),
        ((0, 0, 0, 0, 1, 1, 1, 1), 4, Status.PASS),
        ((0, 1, 0, 1, 0, 1, 0, 1), 4, Status.FAIL),
        ((0, 0, 0, 0, 0, 1, 1, 1), 4, Status.PASS),
        ((1, 0, 0, 0, 0, 1, 1, 1), 4, Status.FAIL),
    ],
)
def test_a_group_spans_no_more_than_it_must(
    nodes: tuple[int, ...], size: int, expected: Status
) -> None:
    """What no order of the devices could mend is not held against them."""
    assert status(nodes, 8, size) is expected


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=6).map(tuple),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_what_fails_could_be_better(nodes: tuple[int, ...], size: int, groups: int) -> None:
    """Only what another order would mend fails; with a single group, all of it."""
    used = min(size * groups, len(nodes) // size * size)
    if used == 0:
        return
    best = min(spanned(order, used, size) for order in permutations(nodes))
    found = status(nodes, used, size)
    if used == size or found is Status.FAIL:
        assert (found is Status.FAIL) == (spanned(nodes, used, size) > best)
