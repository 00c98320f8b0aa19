"""The plan against the vLLM that is installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llmdeploy.plan.layout import partition

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def dealt_by_vllm() -> Callable[[int, int, int], tuple[int, int]]:
    """VLLM's function that says which layers a stage has."""
    utils = pytest.importorskip("vllm.distributed.utils", exc_type=ImportError)
    found: Callable[[int, int, int], tuple[int, int]] = utils.get_pp_indices
    return found


def test_partition_is_vllms(dealt_by_vllm: Callable[[int, int, int], tuple[int, int]]) -> None:
    """For every number of layers and stages, each stage begins and ends where vLLM's does."""
    for layers in range(1, 130):
        for stages in range(1, min(layers, 16) + 1):
            counts = partition(layers, stages)
            ends = [sum(counts[: stage + 1]) for stage in range(stages)]
            ours = list(zip([0, *ends], ends, strict=False))
            theirs = [dealt_by_vllm(layers, stage, stages) for stage in range(stages)]
            assert ours == theirs, (layers, stages)
