"""The deployment as a graph: a request's way through the ranks, and who talks to whom on it.

Edges lead from the request over copies and pipeline stages to the response, so the graph has no
cycle; what the ranks of a group say to each other is a hyperedge. Mirrors vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pytest_llmdeploy.plan.memory import resolved_dtype
from pytest_llmdeploy.plan.model import Plan, Rank
from pytest_llmdeploy.plan.shape import DTYPE_BYTES, Layer, ModelShape
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import show

REQUEST, RESPONSE = "request", "response"
_GATHERING = ("allgather_reducescatter", "naive")
# With these, the ranks of a TP group divide the tokens among them before the experts
# (config/parallel.py: use_sequence_parallel_moe).
_SEQUENCE_PARALLEL = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "flashinfer_nvlink_one_sided",
    "mori_high_throughput",
    "mori_low_latency",
    "nixl_ep",
)

Axis = Literal["tensor", "data", "expert", "prefill_context", "decode_context"]


@dataclass(frozen=True, slots=True)
class Edge:
    """What goes from one node to the next; the bytes are for each token, None where not known."""

    source: str
    target: str
    collective: Literal["route", "schedule", "point-to-point", "answer"]
    bytes_per_token: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that exchange something together: `calls` times in a forward pass, `message_bytes` for
    each token and call. None where the model is not known or nobody has counted it.
    """

    collective: str
    axis: Axis
    what: str
    stage: int
    ranks: tuple[int, ...]
    calls: int | None
    message_bytes: int | None

    @property
    def bytes_per_token(self) -> int | None:
        if self.calls is None or self.message_bytes is None:
            return None
        return self.calls * self.message_bytes


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes are the request, each copy, each rank, and the response."""

    name: str
    ranks: tuple[Rank, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...]

    @property
    def copies(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(rank.dp for rank in self.ranks))

    @property
    def nodes(self) -> tuple[str, ...]:
        copies = map(copy_id, self.copies)
        return (REQUEST, *copies, *(rank_id(rank.rank) for rank in self.ranks), RESPONSE)

    def stages(self, copy: int) -> Mapping[int, list[Rank]]:
        """The ranks of a copy by pipeline stage."""
        found: dict[int, list[Rank]] = {}
        for rank in self.ranks:
            if rank.dp == copy:
                found.setdefault(rank.pp, []).append(rank)
        return found

    def to_json(self) -> dict[str, Any]:
        ranks = [{"id": rank_id(r.rank), "kind": "rank", **asdict(r)} for r in self.ranks]
        copies = [{"id": copy_id(copy), "kind": "replica", "dp": copy} for copy in self.copies]
        ends = [{"id": end, "kind": end} for end in (REQUEST, RESPONSE)]
        groups = [{**asdict(g), "bytes_per_token": g.bytes_per_token} for g in self.groups]
        edges = [asdict(edge) for edge in self.edges]
        nodes = [ends[0], *copies, *ranks, ends[1]]
        return {"name": self.name, "nodes": nodes, "edges": edges, "groups": groups}


def rank_id(rank: int) -> str:
    return f"rank{rank}"


def copy_id(copy: int) -> str:
    return f"replica{copy}"


def deployment_graph(spec: Spec, plan: Plan) -> Graph:
    """The graph of `plan`; of an infeasible one, too, as far as it is known."""
    return Graph(spec.name, plan.ranks, tuple(_edges(spec, plan)), tuple(_groups(spec, plan)))


def _hidden_bytes(spec: Spec, shape: ModelShape | None) -> int | None:
    return shape.hidden * DTYPE_BYTES[resolved_dtype(spec, shape)] if shape else None


def _edges(spec: Spec, plan: Plan) -> Iterator[Edge]:
    by_place = {(rank.dp, rank.pp, rank.pcp, rank.tp): rank for rank in plan.ranks}
    hidden = _hidden_bytes(spec, plan.shape)
    # The hidden state and the residual; each rank of a TP group sends its part of them
    # (distributed/parallel_state.py: isend_tensor_dict).
    sent = 2 * hidden / spec.parallel.tensor if hidden else None
    for copy in dict.fromkeys(rank.dp for rank in plan.ranks):
        yield Edge(REQUEST, copy_id(copy), "route")
    for (dp, pp, pcp, tp), rank in by_place.items():
        if pp == 0:
            yield Edge(copy_id(dp), rank_id(rank.rank), "schedule")
        if following := by_place.get((dp, pp + 1, pcp, tp)):
            yield Edge(rank_id(rank.rank), rank_id(following.rank), "point-to-point", sent)
        elif (pcp, tp) == (0, 0):
            # One rank of the last stage returns what was sampled.
            yield Edge(rank_id(rank.rank), RESPONSE, "answer")


@dataclass(frozen=True)
class _Stage:
    """The layers of a stage, as far as they are known, and what their messages weigh."""

    index: int
    is_last: bool
    layers: tuple[Layer, ...] | None
    hidden: int | None
    logits: int | None

    @property
    def count(self) -> int | None:
        return None if self.layers is None else len(self.layers)

    @property
    def expert_layers(self) -> int | None:
        return None if self.layers is None else sum(bool(layer.experts) for layer in self.layers)

    @property
    def experts_per_token(self) -> int:
        return max((layer.experts_per_token for layer in self.layers or ()), default=0)


def _stages(spec: Spec, plan: Plan) -> Iterator[_Stage]:
    shape, hidden = plan.shape, _hidden_bytes(spec, plan.shape)
    logits = None
    if shape:
        logits = shape.padded_vocab * DTYPE_BYTES[resolved_dtype(spec, shape)]
    spans = {rank.pp: rank.layers for rank in plan.ranks}
    for index in range(spec.parallel.pipeline):
        span, layers = spans.get(index), None
        if shape and plan.stage_layers:
            layers = shape.layers[span[0] : span[1] + 1] if span else ()
        yield _Stage(index, index == spec.parallel.pipeline - 1, layers, hidden, logits)


def _groups(spec: Spec, plan: Plan) -> Iterator[Group]:
    for stage in _stages(spec, plan):
        ranks = [rank for rank in plan.ranks if rank.pp == stage.index]
        if spec.parallel.tensor > 1:
            yield from _tensor(spec, stage, ranks)
        if stage.expert_layers and spec.parallel.expert_size > 1:
            yield from _experts(spec, stage, ranks)
        yield from _context(spec, stage, ranks)


def _each(
    ranks: list[Rank], key: Callable[[Rank], object], stage: _Stage, **what: Any
) -> Iterator[Group]:
    """One group for all ranks that are alike in `key`."""
    found: dict[object, list[int]] = {}
    for rank in ranks:
        found.setdefault(key(rank), []).append(rank.rank)
    for members in found.values():
        if len(members) > 1:
            yield Group(stage=stage.index, ranks=tuple(members), **what)


def _divides_tokens(spec: Spec) -> bool:
    """Whether a TP group divides the tokens among its ranks before the experts."""
    parallel = spec.parallel
    return (
        parallel.expert
        and parallel.tensor > 1
        and parallel.data > 1
        and _backend(spec) in _SEQUENCE_PARALLEL
    )


def _backend(spec: Spec) -> str:
    return str((spec.serve.model_extra or {}).get("all2all_backend", "allgather_reducescatter"))


def _tensor(spec: Spec, stage: _Stage, ranks: list[Rank]) -> Iterator[Group]:
    """Two sums a layer, of attention and MLP; with divided tokens, a gather after the experts."""

    def groups(collective: str, what: str, calls: int | None, size: int | None) -> Iterator[Group]:
        return _each(
            ranks,
            lambda rank: (rank.dp, rank.pcp),
            stage,
            collective=collective,
            axis="tensor",
            what=what,
            calls=calls,
            message_bytes=size,
        )

    divided = stage.expert_layers or 0 if _divides_tokens(spec) else 0
    sums = None if stage.count is None else 2 * stage.count - divided
    if stage.index == 0:
        yield from groups("all-reduce", "embedding", 1, stage.hidden)
    else:
        yield from groups("all-gather", "from the stage before", 2, stage.hidden)
    if sums != 0:
        yield from groups("all-reduce", "attention and MLP", sums, stage.hidden)
    if divided:
        yield from groups("all-gather", "after the experts", divided, stage.hidden)
    if stage.is_last:
        yield from groups("all-gather", "logits of a sampled token", 1, stage.logits)


def _experts(spec: Spec, stage: _Stage, ranks: list[Rank]) -> Iterator[Group]:
    """Tokens go to the ranks that hold their experts, and come back.

    Without data or context parallelism every rank has all tokens, and the sum of the TP group
    brings the experts together (fused_moe/config.py: use_all2all_kernels). Without expert
    parallelism, each expert is split over the copies, and all of them need all tokens.
    """
    parallel = spec.parallel
    if parallel.data == 1 and (parallel.prefill_context == 1 or not parallel.expert):
        return
    key, axis = _token_group(spec)
    size, layers = stage.hidden, stage.expert_layers
    if parallel.expert and _backend(spec) not in _GATHERING:
        # At most: a token goes once to each rank that holds some of its experts.
        copies = min(stage.experts_per_token, parallel.expert_size)
        sent = size * copies if size else None
        calls = (("all-to-all", "to the experts", sent), ("all-to-all", "from the experts", sent))
    else:
        calls = (
            ("all-gather", "to the experts", size),
            ("reduce-scatter", "from the experts", size),
        )
    for collective, what, message in calls:
        yield from _each(
            ranks,
            key,
            stage,
            collective=collective,
            axis=axis,
            what=what,
            calls=layers,
            message_bytes=message,
        )


def _token_group(spec: Spec) -> tuple[Callable[[Rank], object], Axis]:
    """Among whom tokens are exchanged (device_communicators/all2all.py: _get_comm_group)."""
    if spec.parallel.expert and (_divides_tokens(spec) or _backend(spec) not in _GATHERING):
        return _all_of_the_stage, "expert"
    if spec.parallel.data > 1:
        return _same_place_in_copy, "data"
    return _same_tensor, "prefill_context"


def _all_of_the_stage(_rank: Rank) -> object:
    return None


def _same_place_in_copy(rank: Rank) -> object:
    return rank.pcp, rank.tp


def _same_tensor(rank: Rank) -> object:
    return rank.dp, rank.tp


def _context(spec: Spec, stage: _Stage, ranks: list[Rank]) -> Iterator[Group]:
    """The groups of context parallelism; their bytes depend on the attention backend."""
    parallel = spec.parallel
    common = {"collective": "all-gather", "calls": None, "message_bytes": None}
    if parallel.prefill_context > 1:
        what = "keys and values of a prompt's parts"
        axis = "prefill_context"
        yield from _each(ranks, _same_tensor, stage, axis=axis, what=what, **common)
    if (size := parallel.decode_context) > 1:
        what, axis = "queries and partial outputs", "decode_context"
        yield from _each(
            ranks,
            lambda rank: (rank.dp, rank.pcp, rank.tp // size),
            stage,
            axis=axis,
            what=what,
            **common,
        )


def label(rank: Rank) -> tuple[str, ...]:
    """What a drawing says of a rank, line by line."""
    lines = [f"rank {rank.rank}", f"node {rank.node}, device {rank.device}"]
    if rank.layers:
        lines.append(f"layers {rank.layers[0]} to {rank.layers[1]}")
    if rank.experts is not None:
        lines.append(f"{rank.experts} experts a layer")
    if rank.weights_bytes is not None:
        lines.append(f"{show(rank.weights_bytes, 'B')} of weights")
    return tuple(lines)


def edge_label(edge: Edge) -> str:
    if edge.bytes_per_token is None:
        return edge.collective
    return f"{edge.collective}: {show(edge.bytes_per_token, 'B')} a token"


def group_label(group: Group) -> tuple[str, ...]:
    lines = [f"{group.collective} ({group.axis.replace('_', ' ')})", group.what]
    if group.bytes_per_token is not None:
        size = show(group.message_bytes or 0, "B")
        lines.append(f"{group.calls} × {size} = {show(group.bytes_per_token, 'B')} a token")
    return tuple(lines)
