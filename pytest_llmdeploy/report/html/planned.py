"""What is planned: the memory of each rank, and the strategies that were considered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt

from pytest_llmdeploy.plan import Plan, Rank
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.html.drawing import INK, MOST_POINTS, Figure, chart, drawn
from pytest_llmdeploy.report.plan_tables import strategy
from pytest_llmdeploy.units import show

_GIB = 2**30
_PARTS = ("weights", "KV cache", "activations, at least", "activations, at most", "free")
_KINDS = ("declared", "within the limits", "beyond a limit")
_MOST_REFUSED = 200


def memory(checklist: Checklist, plan: Plan) -> Iterator[Figure]:
    """The bytes of each rank; nothing where the plan does not determine them."""
    ranks = [(rank, parts) for rank in plan.ranks if (parts := _parts(rank))]
    if not ranks:
        return
    tightest, sizes = min(ranks, key=lambda pair: pair[1][-1])
    more = len(ranks) - MOST_POINTS // len(_PARTS)
    ranks = ranks[: MOST_POINTS // len(_PARTS)]
    values = [
        {"rank": str(rank.rank), "part": part, "GiB": size / _GIB, "order": order}
        for rank, parts in ranks
        for order, (part, size) in enumerate(zip(_PARTS, parts, strict=True))
    ]
    bars = chart(values).mark_bar()
    bars = bars.encode(
        x=alt.X("rank:N", sort=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("GiB:Q", title="GiB"),
        color=alt.Color("part:N", sort=list(_PARTS), title=None),
        order="order:O",
    )
    lines = list(_limits(checklist, plan))
    rules = chart(lines).mark_rule(strokeWidth=2, color=INK)
    rules = rules.encode(y="GiB:Q", strokeDash=alt.StrokeDash("limit:N", title=None))
    limits = ", ".join(f"{line['limit']} {line['GiB']:.4g} GiB" for line in lines)
    left_out = f" (and {more} more)" if more > 0 else ""
    says = f"{len(ranks)} ranks{left_out}; the least free is {show(sizes[-1], 'B')}, on {tightest}"
    title = "Memory of each rank, planned"
    yield Figure(
        title=title,
        svg=drawn(alt.layer(bars, rules) if lines else bars, title),
        says=f"{says}; {limits}" if limits else says,
        columns=["Rank", *_PARTS],
        table=[[str(rank.rank), *(show(size, "B") for size in parts)] for rank, parts in ranks],
    )


def _parts(rank: Rank) -> tuple[int, ...] | None:
    if rank.weights_bytes is None or rank.kv_bytes_per_token is None or rank.kv_tokens is None:
        return None
    if rank.activation_bytes is None or rank.used_bytes is None or rank.headroom_bytes is None:
        return None
    low, high = rank.activation_bytes
    pool = rank.kv_bytes_per_token * rank.kv_tokens
    free = rank.used_bytes + rank.headroom_bytes - rank.weights_bytes - pool - high
    return rank.weights_bytes, pool, low, high - low, max(0, free)


def _limits(checklist: Checklist, plan: Plan) -> Iterator[dict[str, Any]]:
    total = plan.spec.hardware.device.total_bytes
    for row in checklist.rows:
        if row.check == "planned_memory_utilization" and row.limit is not None and total:
            limit = f"limit {show(row.limit, 'fraction')}"
            yield {"GiB": total * row.limit / _GIB, "limit": limit}


def strategies(plan: Plan) -> Iterator[Figure]:
    """Those with a prediction as points. What vLLM refuses or does not fit has none, and stands
    below the others in the table, with its reasons.
    """
    found = [(one, point) for one in plan.alternatives if (point := _point(one))][:MOST_POINTS]
    if not found:
        return
    values = [point for _, point in found]
    points = chart(values).mark_point(filled=True, size=90)
    kinds = alt.Scale(domain=[kind for kind in _KINDS if any(p["kind"] == kind for p in values)])
    points = points.encode(
        x=alt.X("throughput:Q", title="requests/s for each device"),
        y=alt.Y("tpot:Q", title="TPOT (ms)", scale=alt.Scale(zero=False)),
        color=alt.Color("kind:N", title="strategy", scale=kinds),
        shape=alt.Shape("kind:N", title="strategy", scale=kinds),
    )
    refused = [one for one in plan.alternatives if not one.feasible]
    more = f" (the first {_MOST_REFUSED} are listed)" if len(refused) > _MOST_REFUSED else ""
    best = strategy(found[0][0].parallel)
    title = "Strategies, predicted"
    yield Figure(
        title=title,
        svg=drawn(points, title),
        says=f"{len(found)} predicted, the best is {best}; {len(refused)} infeasible, for which "
        f"nothing is predicted{more}",
        columns=["Strategy", "Kind", "Requests/s for each device", "TPOT (ms)", "Why"],
        table=[
            *(
                _line(one, p["kind"], f"{p['throughput']:.3g}", f"{p['tpot']:.3g}")
                for one, p in found
            ),
            *(_line(one, "infeasible", "-", "-") for one in refused[:_MOST_REFUSED]),
        ],
    )


def _line(one: Alternative, *cells: str) -> list[str]:
    return [strategy(one.parallel), *cells, "; ".join(one.reasons)]


def _point(one: Alternative) -> Mapping[str, Any] | None:
    raw = one.to_json()
    throughput, prediction = raw["throughput"], raw["prediction"]
    if not (throughput and prediction and prediction["tpot_ms"]):
        return None
    kind = _KINDS[0] if one.declared else _KINDS[1] if one.meets_limits else _KINDS[2]
    return {"throughput": throughput["value"], "tpot": prediction["tpot_ms"], "kind": kind}
