"""Who does what: layers per pipeline stage, and the coordinates of every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from pytest_llmdeploy.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The coordinates of a rank, and the device it gets; `layers` is first and last, from 0."""

    rank: int
    dp: int
    pp: int
    pcp: int
    tp: int
    dcp: int
    ep: int
    node: int
    device: int
    layers: tuple[int, int] | None


def partition(layers: int, stages: int) -> tuple[int, ...]:
    """Layers per stage as vLLM deals them (distributed/utils.py: get_pp_indices): what is left
    over goes to the stages before the last.
    """
    counts = [layers // stages] * stages
    for index in range(2, layers % stages + 2):
        counts[-index] += 1
    return tuple(counts)


def places(spec: Spec, stages: Sequence[int] | None) -> Iterator[Place]:
    """Every rank in vLLM's order, DP × PP × PCP × TP; `stages` are the layers per stage."""
    parallel = spec.parallel
    axes = (parallel.data, parallel.pipeline, parallel.prefill_context, parallel.tensor)
    per_node = spec.hardware.devices_per_node
    for rank, (dp, pp, pcp, tp) in enumerate(product(*map(range, axes))):
        flat = (dp * parallel.prefill_context + pcp) * parallel.tensor + tp
        yield Place(
            rank=rank,
            dp=dp,
            pp=pp,
            pcp=pcp,
            tp=tp,
            dcp=tp % parallel.decode_context,
            ep=flat if parallel.expert else 0,
            node=rank // per_node,
            device=rank % per_node,
            layers=_span(stages, pp),
        )


def _span(stages: Sequence[int] | None, stage: int) -> tuple[int, int] | None:
    if stages is None or stage >= len(stages) or not stages[stage]:
        return None
    first = sum(stages[:stage])
    return first, first + stages[stage] - 1
