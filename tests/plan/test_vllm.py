"""The plan against the vLLM that is installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llmdeploy.plan.layout import partition
from pytest_llmdeploy.plan.rules import RULES

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


def test_rules_name_what_vllm_has() -> None:
    """The function or class that a rule says refuses is there."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("no vLLM is installed")
    names = {source for _, source in RULES if source}
    pattern = re.compile(rf"^ *(?:def|class) ({'|'.join(names)})\b", re.MULTILINE)
    for file in Path(vllm.origin).parent.rglob("*.py"):
        names -= set(pattern.findall(file.read_text(encoding="utf-8")))
    assert names == set()
