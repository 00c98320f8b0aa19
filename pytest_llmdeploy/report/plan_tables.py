"""The plan as tables: what the page of `llmdeploy plan` and the reports for people show of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmdeploy.plan import Plan, Rank
from pytest_llmdeploy.plan.latency import Estimate
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import show

_MOST_REPLICAS = 16


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as texts, and sentences below them."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def strategy(parallel: Parallel) -> str:
    """The strategy in one line: TP 4 × PP 2, EP, layers 41+39."""
    sizes = {
        "TP": parallel.tensor,
        "PP": parallel.pipeline,
        "DP": parallel.data,
        "PCP": parallel.prefill_context,
        "DCP": parallel.decode_context,
    }
    text = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "TP 1"
    text += ", EP" if parallel.expert else ""
    return text + (f", layers {'+'.join(map(str, parallel.layers))}" if parallel.layers else "")


def layout(found: Plan) -> Table:
    """Which ranks, devices, layers and experts each stage of each replica has."""
    shown = [rank for rank in found.ranks if rank.dp < _MOST_REPLICAS]
    rows = [_layout_row(ranks) for ranks in _by_stage(shown)]
    headers = ["Replica", "Stage", "Ranks", "Node: devices", "Layers", "Experts"]
    if all(row[-1] == "-" for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    more = len({rank.dp for rank in found.ranks}) - _MOST_REPLICAS
    notes = [f"and {more} more replicas, laid out likewise"] if more > 0 else []
    return Table(headers, rows, notes)


def _layout_row(ranks: Sequence[Rank]) -> list[str]:
    first = ranks[0]
    return [
        str(first.dp),
        str(first.pp),
        _span([rank.rank for rank in ranks]),
        _devices(ranks),
        "-" if first.layers is None else f"{first.layers[0]} to {first.layers[1]}",
        _span(sorted({rank.experts for rank in ranks if rank.experts is not None})) or "-",
    ]


def _by_stage(ranks: Sequence[Rank]) -> list[list[Rank]]:
    found: dict[tuple[int, int], list[Rank]] = {}
    for rank in ranks:
        found.setdefault((rank.dp, rank.pp), []).append(rank)
    return list(found.values())


def _devices(ranks: Sequence[Rank]) -> str:
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank.node, []).append(rank.device)
    return ", ".join(f"{node}: {_span(devices)}" for node, devices in nodes.items())


def _span(numbers: Sequence[int]) -> str:
    """Consecutive numbers as a range."""
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first} to {last}"


def memory(spec: Spec, found: Plan) -> Table:
    """The fullest rank of each stage, over all replicas."""
    stages: dict[int, Rank] = {}
    for rank in found.ranks:
        if rank.weights_bytes is not None:
            fullest = stages.setdefault(rank.pp, rank)
            if rank.weights_bytes > (fullest.weights_bytes or 0):
                stages[rank.pp] = rank
    total = spec.hardware.device.total_bytes
    headers = ["Stage", "Weights", "KV pool", "Activations", "Headroom", "Used"]
    return Table(headers, [_memory_row(rank, total) for rank in stages.values()])


def _memory_row(rank: Rank, total: int | None) -> list[str]:
    pool = activations = "-"
    if rank.kv_tokens is not None and rank.kv_bytes_per_token is not None:
        pool = show(rank.kv_tokens * rank.kv_bytes_per_token, "B")
    if rank.activation_bytes is not None:
        activations = _range(*(show(size, "B") for size in rank.activation_bytes))
    used = rank.used_bytes / total if rank.used_bytes is not None and total else None
    return [
        str(rank.pp),
        show(rank.weights_bytes or 0, "B"),
        pool,
        activations,
        "-" if rank.headroom_bytes is None else show(rank.headroom_bytes, "B"),
        "-" if used is None else show(used, "fraction"),
    ]


def _range(low: str, high: str) -> str:
    """Two quantities, the unit once if it is the same."""
    (number, unit), (_, other) = low.split(), high.split()
    return f"{number if unit == other else low} to {high}"


def kv_cache(spec: Spec, found: Plan) -> Iterator[str]:
    """What the pool holds, in sentences."""
    if found.kv_cache is None or found.max_model_len is None:
        return
    each = " in each replica" if spec.parallel.data > 1 else ""
    tokens, concurrency = found.kv_cache.tokens, found.kv_cache.max_concurrency
    yield f"{tokens:,} tokens{each}: {concurrency:,.1f} sequences of {found.max_model_len:,} tokens"
    low, high = found.kv_cache.sequences(found.max_model_len)
    if low != high:
        yield f"between {low:,} and {high:,}, as activations are known in ranges"


def prediction(found: Plan) -> Table:
    """What is predicted under each workload: the bands."""
    rows = [
        [
            name,
            _estimate(expected.ttft_ms, "ms"),
            _estimate(expected.tpot_ms, "ms"),
            f"{expected.capacity.low:.3g} to {expected.capacity.high:.3g}/s",
            f"{expected.concurrency:.0f}",
        ]
        for name, expected in found.prediction.items()
    ]
    return Table(
        ["Workload", "TTFT", "TPOT", "A replica serves", "Running"], rows, [*_doubts(found)]
    )


def _doubts(found: Plan) -> Iterator[str]:
    for workload, expected in found.prediction.items():
        notes = ["more is asked than it sustains"] if expected.saturated else []
        if expected.outside:
            outside = ", ".join(name.replace("_", " ") for name in expected.outside)
            notes.append(f"beyond what the predictor was fitted on: {outside}")
        if notes:
            yield f"{workload}: {'; '.join(notes)}"


def _estimate(estimate: Estimate, unit: str) -> str:
    """The band, in as many digits as it deserves."""
    low, high = f"{estimate.low:.3g}", f"{estimate.high:.3g}"
    if max(len(low), len(high)) > len("1000"):
        low, high = f"{estimate.low:.0f}", f"{estimate.high:.0f}"
    return f"{low} to {high} {unit}"


def alternatives(ranked: Sequence[Alternative], most: int) -> Table:
    """The first `most` strategies and the declared one: place, name, requests/s for each device,
    why it is not the best.
    """
    shown = [one for index, one in enumerate(ranked) if index < most or one.declared]
    rows = [
        [
            str(one.place or "-"),
            strategy(one.parallel) + (" (declared)" if one.declared else ""),
            f"{one.throughput.value:.3g}" if one.throughput else "-",
            _reason(one),
        ]
        for one in shown
    ]
    more = len(ranked) - len(shown)
    notes = [f"and {more} more"] if more else []
    return Table(["Place", "Strategy", "Req/s/device", "Reason"], rows, notes)


def _reason(alternative: Alternative) -> str:
    if not alternative.reasons:
        return "the best" if alternative.place == 1 else ""
    first, *others = alternative.reasons
    # Where vLLM refuses it is in the JSON.
    text = first.partition(" (vLLM: ")[0]
    return f"{text} (and {len(others)} more)" if others else text
