"""Who does what: layers per pipeline stage, experts per rank, and the coordinates of every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from pytest_llmdeploy.spec import Parallel, Spec


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline stage: which one of how many, and its first and last layer, from 0 (None: it
    has no layers).
    """

    index: int
    count: int
    layers: tuple[int, int] | None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    @property
    def depth(self) -> int:
        return self.layers[1] - self.layers[0] + 1 if self.layers else 0


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


def declared_partition(spec: Spec) -> tuple[int, ...] | None:
    """The layers per stage that the spec gives, in parallel.layers or VLLM_PP_LAYER_PARTITION."""
    if spec.parallel.layers is not None:
        return spec.parallel.layers
    given = spec.serve.env.get("VLLM_PP_LAYER_PARTITION")
    parts = (given.text or "").split(",") if given else []
    if not all(part.strip().isdecimal() for part in parts):
        return None
    return tuple(map(int, parts)) or None


def stages(counts: Sequence[int]) -> tuple[Stage, ...]:
    """The stages with so many layers each, in order."""
    found, first = [], 0
    for index, count in enumerate(counts):
        span = (first, first + count - 1) if count > 0 else None
        found.append(Stage(index, len(counts), span))
        first += count
    return tuple(found)


def experts_held(parallel: Parallel, experts: int, ep: int) -> int | None:
    """Routed experts on the rank with that EP coordinate; None where each has a part of all
    (fused_moe: the first ranks take what is left over).
    """
    if not parallel.expert or not experts:
        return None
    size = parallel.expert_size
    return experts // size + (ep < experts % size)


def places(spec: Spec, counts: Sequence[int] | None) -> Iterator[Place]:
    """Every rank in vLLM's order, DP × PP × PCP × TP; `counts` are the layers per stage."""
    parallel = spec.parallel
    axes = (parallel.data, parallel.pipeline, parallel.prefill_context, parallel.tensor)
    per_node = spec.hardware.devices_per_node
    spans = [stage.layers for stage in stages(counts or ())]
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
            layers=spans[pp] if pp < len(spans) else None,
        )
