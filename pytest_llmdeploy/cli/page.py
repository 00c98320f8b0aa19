"""The plan as a page of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from tabulate import tabulate

from pytest_llmdeploy.plan import Plan, Rank
from pytest_llmdeploy.plan.latency import Estimate
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import show

WIDTH = 80
_MOST_ALTERNATIVES = 16
_NAME, _REASON, _REASON_LINES = 23, 28, 3
_MOST_REPLICAS = 16


def plan_page(spec: Spec, found: Plan, ranked: Sequence[Alternative], launch: str) -> str:
    """Everything that the plan knows, section by section."""
    sections = {
        "": _head(spec, found),
        "Violations": _bullets(str(violation) for violation in found.violations),
        "Layout": _layout(found),
        "Memory of a device, by stage": _memory(spec, found),
        "KV cache": _kv_cache(spec, found),
        "Prediction": _prediction(found),
        "Alternatives": _alternatives(ranked),
        "Launch command": iter(launch.splitlines()),
    }
    text = ""
    for title, lines in sections.items():
        if body := "\n".join(f"  {line}" if title else line for line in lines):
            text += f"\n{title}\n{body}\n" if title else f"{body}\n"
    return text


def _head(spec: Spec, found: Plan) -> Iterator[str]:
    state = "feasible" if found.is_feasible else "NOT FEASIBLE"
    yield f"{spec.name}: {'not known' if found.unknown else state}"
    size = f", {_count(found.parameters)} parameters" if found.parameters else ""
    yield f"{spec.model.id}{size}"
    layout = strategy(spec.parallel)
    yield f"{layout} on {found.devices} of {found.available} × {spec.hardware.device.name}"
    yield from textwrap.wrap(found.unknown, WIDTH)


def _count(number: int) -> str:
    scale, word = (1e9, "billion") if number >= 1e9 else (1e6, "million")  # noqa: PLR2004
    return f"{number / scale:.4g} {word}"


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


def _bullets(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, WIDTH - 2, initial_indent="- ", subsequent_indent="  ")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        text = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
        yield from (line.rstrip() for line in text.splitlines())


def _layout(found: Plan) -> Iterator[str]:
    shown = [rank for rank in found.ranks if rank.dp < _MOST_REPLICAS]
    rows = [_layout_row(ranks) for ranks in _by_stage(shown)]
    headers = ["Replica", "Stage", "Ranks", "Node: devices", "Layers", "Experts"]
    if all(row[-1] == "-" for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    yield from _table(headers, rows)
    more = len({rank.dp for rank in found.ranks}) - _MOST_REPLICAS
    if more > 0:
        yield f"and {more} more replicas, laid out likewise"


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


def _memory(spec: Spec, found: Plan) -> Iterator[str]:
    """The fullest rank of each stage, over all replicas."""
    stages: dict[int, Rank] = {}
    for rank in found.ranks:
        if rank.weights_bytes is not None:
            fullest = stages.setdefault(rank.pp, rank)
            if rank.weights_bytes > (fullest.weights_bytes or 0):
                stages[rank.pp] = rank
    total = spec.hardware.device.total_bytes
    headers = ["Stage", "Weights", "KV pool", "Activations", "Headroom", "Used"]
    yield from _table(headers, [_memory_row(rank, total) for rank in stages.values()])


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


def _kv_cache(spec: Spec, found: Plan) -> Iterator[str]:
    if found.kv_cache is None or found.max_model_len is None:
        return
    each = " in each replica" if spec.parallel.data > 1 else ""
    tokens, concurrency = found.kv_cache.tokens, found.kv_cache.max_concurrency
    yield f"{tokens:,} tokens{each}: {concurrency:,.1f} sequences of {found.max_model_len:,} tokens"
    low, high = found.kv_cache.sequences(found.max_model_len)
    if low != high:
        yield f"between {low:,} and {high:,}, as activations are known in ranges"


def _prediction(found: Plan) -> Iterator[str]:
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
    headers = ["Workload", "TTFT", "TPOT", "A replica serves", "Running"]
    yield from _table(headers, rows)
    for workload, expected in found.prediction.items():
        notes = ["more is asked than it sustains"] if expected.saturated else []
        if expected.outside:
            outside = ", ".join(name.replace("_", " ") for name in expected.outside)
            notes.append(f"beyond what the predictor was fitted on: {outside}")
        yield from _bullets(iter([f"{workload}: {'; '.join(notes)}"] if notes else []))


def _estimate(estimate: Estimate, unit: str) -> str:
    """The band, in as many digits as it deserves."""
    low, high = f"{estimate.low:.3g}", f"{estimate.high:.3g}"
    if max(len(low), len(high)) > len("1000"):
        low, high = f"{estimate.low:.0f}", f"{estimate.high:.0f}"
    return f"{low} to {high} {unit}"


def _alternatives(ranked: Sequence[Alternative]) -> Iterator[str]:
    shown = [
        alternative
        for index, alternative in enumerate(ranked)
        if index < _MOST_ALTERNATIVES or alternative.declared
    ]
    rows = [row for alternative in shown for row in _alternative_rows(alternative)]
    yield from _table(["Place", "Strategy", "Req/s/device", "Reason"], rows)
    if more := len(ranked) - len(shown):
        yield f"and {more} more: --json lists them"


def _alternative_rows(alternative: Alternative) -> Iterator[tuple[str, ...]]:
    """One row, or more where a cell is too long for its column."""
    name = strategy(alternative.parallel) + (" (declared)" if alternative.declared else "")
    served, place = alternative.throughput, alternative.place
    yield from zip_longest(
        [str(place or "-")],
        textwrap.wrap(name, _NAME),
        [f"{served.value:.3g}" if served else "-"],
        textwrap.wrap(_reason(alternative), _REASON, max_lines=_REASON_LINES, placeholder=" …"),
        fillvalue="",
    )


def _reason(alternative: Alternative) -> str:
    if not alternative.reasons:
        return "the best" if alternative.place == 1 else ""
    first, *others = alternative.reasons
    # Where vLLM refuses it is in the JSON.
    text = first.partition(" (vLLM: ")[0]
    return f"{text} (and {len(others)} more)" if others else text
