"""The plots of a checklist, as SVG that is drawn in the page's own colour of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from pytest_llmdeploy.report.checklist import Checklist

_POINTS = 2000
# Stands for the colour of the text, which differs between light and dark.
_INK = "#010203"
_AXES = dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), _INK)
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing, what it says in a sentence, and its figures as a table."""

    title: str
    svg: str
    says: str
    columns: Sequence[str]
    table: Sequence[Sequence[str]]


def plots(checklist: Checklist) -> list[Plot]:
    """All that the facts are enough for; none of a spec that is broken."""
    plan = checklist.facts.get("plan") or {}
    traffic: Mapping[str, Any] = checklist.facts.get("traffic") or {}
    found = [*_memory(plan.get("ranks", ())), *_alternatives(plan.get("alternatives", ()))]
    for name, workload in traffic.items():
        if requests := workload.get("requests"):
            for metric in ("ttft", "tpot", "e2el", "stall"):
                found += _distribution(checklist, name, metric, requests[metric])
            found += _timeline(name, requests)
    devices = checklist.facts.get("devices") or {}
    return [*found, *_devices(devices.get("under_load") or {})]


def _data(values: Sequence[Mapping[str, Any]]) -> alt.Data:
    return alt.Data(values=values)  # type: ignore[no-untyped-call]


def _drawn(chart: Any, title: str) -> str:
    drawing = chart.properties(width=640, height=240, title=title).configure(
        background="transparent", font="sans-serif"
    )
    described: dict[str, Any] = drawing.to_dict()
    described["config"] |= {
        "axis": {**_AXES, "gridColor": _INK, "gridOpacity": 0.15},
        "legend": {"labelLimit": 0, "labelColor": _INK, "titleColor": _INK},
        "title": {"color": _INK},
        "view": {"stroke": None},
    }
    # Drawn in the page, an SVG takes the colour of the text around it.
    svg: str = vl_convert.vegalite_to_svg(described)
    label = f'<svg role="img" aria-label="{_attribute(title)}" '
    return svg.replace(_INK, "currentColor").replace("<svg ", label, 1)


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return text


def _memory(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Plot]:
    """Bytes of each rank; nothing where the plan does not know them."""
    known = [rank for rank in ranks if rank["weights_bytes"] is not None and rank["kv_blocks"]]
    known = [rank for rank in known if rank["headroom_bytes"] is not None]
    known = [rank for rank in known if rank["activation_bytes"] and rank["kv_tokens"] is not None]
    if not known:
        return
    parts = []
    for rank in known:
        low, high = rank["activation_bytes"]
        parts.append(
            {
                "weights": rank["weights_bytes"],
                "KV cache": rank["kv_bytes_per_token"] * rank["kv_tokens"],
                "activations, at least": low,
                "activations, at most": high - low,
                "headroom": max(0, rank["headroom_bytes"]),
            }
        )
    values = [
        {"rank": str(rank["rank"]), "part": part, "GiB": size / _GIB, "order": order}
        for rank, sizes in zip(known, parts, strict=True)
        for order, (part, size) in enumerate(sizes.items())
    ]
    chart = alt.Chart(_data(values)).mark_bar()
    chart = chart.encode(
        x=alt.X("rank:N", sort=None),
        y=alt.Y("sum(GiB):Q", title="GiB"),
        color=alt.Color("part:N", sort=list(parts[0])),
        order="order:O",
    )
    table = [
        [str(rank["rank"]), *(f"{size / _GIB:.2f}" for size in sizes.values())]
        for rank, sizes in zip(known, parts, strict=True)
    ]
    tightest = min(known, key=lambda rank: rank["headroom_bytes"])
    says = f"least headroom on rank {tightest['rank']}, {tightest['headroom_bytes'] / _GIB:.1f} GiB"
    title = "Memory of each rank, planned"
    columns = ["rank", *(f"{part} (GiB)" for part in parts[0])]
    yield Plot(title=title, svg=_drawn(chart, title), says=says, columns=columns, table=table)


def _alternatives(alternatives: Sequence[Mapping[str, Any]]) -> Iterator[Plot]:
    """Strategies that have a prediction: those that do not fit have no place in a plot."""
    values = [
        {
            "strategy": _strategy(found["parallel"]),
            "requests/s for each device": found["throughput"]["value"],
            "TPOT (ms)": found["prediction"]["tpot_ms"],
            "kind": _kind(found),
        }
        for found in alternatives
        if found["throughput"] and found["prediction"] and found["prediction"]["tpot_ms"]
    ]
    if not values:
        return
    chart = alt.Chart(_data(values[:_POINTS])).mark_point(filled=True, size=80)
    chart = chart.encode(
        x="requests/s for each device:Q",
        y="TPOT (ms):Q",
        color="kind:N",
        shape="kind:N",
    )
    best = max(values, key=lambda value: value["requests/s for each device"])
    left_out = len(alternatives) - len(values)
    says = f"{len(values)} predicted, {left_out} without a prediction; most requests: "
    says += best["strategy"]
    table = [
        [
            v["strategy"],
            v["kind"],
            f"{v['requests/s for each device']:.3g}",
            f"{v['TPOT (ms)']:.3g}",
        ]
        for v in values
    ]
    title = "Strategies, predicted"
    columns = ["strategy", "kind", "requests/s for each device", "TPOT (ms)"]
    yield Plot(title=title, svg=_drawn(chart, title), says=says, columns=columns, table=table)


def _kind(found: Mapping[str, Any]) -> str:
    if found["declared"]:
        return "declared"
    return "feasible" if found["feasible"] else "infeasible"


def _strategy(parallel: Mapping[str, Any]) -> str:
    text = f"TP {parallel['tensor']} × PP {parallel['pipeline']} × DP {parallel['data']}"
    return f"{text}, experts apart" if parallel["expert"] else text


def _distribution(
    checklist: Checklist, workload: str, metric: str, column: Sequence[float | None]
) -> Iterator[Plot]:
    """The share of requests at or below each latency; limits and bounds of its rows as lines."""
    times = sorted(time for time in column if time is not None)
    if not times:
        return
    step = max(1, -(-len(times) // _POINTS))
    values = [
        {"ms": time, "share": (index + 1) / len(times)}
        for index, time in enumerate(times)
        if index % step == 0 or index == len(times) - 1
    ]
    lines: list[dict[str, Any]] = [
        {"ms": figure, "line": f"{kind}, {row.item}"}
        for row in checklist.rows
        if row.unit == "ms"
        if f"::{metric}[{workload}-" in row.id
        for kind, figure in (("limit", row.limit), ("bound", row.bound))
        if figure is not None
    ]
    curve = alt.Chart(_data(values)).mark_line(interpolate="step-after")
    curve = curve.encode(x="ms:Q", y=alt.Y("share:Q", scale=alt.Scale(domain=[0, 1])))
    rules = alt.Chart(_data(lines)).mark_rule(strokeDash=[4, 3])
    rules = rules.encode(x="ms:Q", color="line:N")
    chart = alt.layer(curve, rules) if lines else curve
    points = {f"p{p}": times[-(-len(times) * p // 100) - 1] for p in (50, 90, 99)}
    says = ", ".join([f"{len(times)} requests", *(f"{p} {t:.4g} ms" for p, t in points.items())])
    table = [[p, f"{t:.4g}"] for p, t in points.items()]
    table += [[line["line"], f"{line['ms']:.4g}"] for line in lines]
    title = f"{metric.upper()} of {workload}, as observed"
    columns = ["figure", "ms"]
    yield Plot(title=title, svg=_drawn(chart, title), says=says, columns=columns, table=table)


def _timeline(workload: str, requests: Mapping[str, Sequence[Any]]) -> Iterator[Plot]:
    """How many requests were in flight, from each one that came or ended."""
    events = sorted([*((t, 1) for t in requests["due"]), *((t, -1) for t in requests["ended"])])
    if not events:
        return
    values, running = [], 0
    for at, change in events:
        running += change
        values.append({"s": at, "in flight": running})
    most = max(values, key=lambda value: value["in flight"])
    step = max(1, -(-len(values) // _POINTS))
    chart = alt.Chart(_data(values[::step])).mark_line(interpolate="step-after")
    chart = chart.encode(x="s:Q", y="in flight:Q")
    says = f"{len(requests['due'])} requests, at most {most['in flight']} in flight"
    says += f" at {most['s']:.1f} s, over {values[-1]['s']:.1f} s"
    table = [["requests", str(len(requests["due"]))], ["most in flight", str(most["in flight"])]]
    title = f"Requests of {workload} in flight"
    columns = ["figure", "value"]
    yield Plot(title=title, svg=_drawn(chart, title), says=says, columns=columns, table=table)


def _devices(looks: Mapping[str, Any]) -> Iterator[Plot]:
    """What was seen of the devices under load: a plot for each field, a line for each device."""
    series: Mapping[str, Mapping[str, Sequence[float | None]]] = looks.get("series", {})
    for name in dict.fromkeys(name for fields in series.values() for name in fields):
        seen = {
            device: [
                (at, value)
                for at, value in zip(looks["times"], fields[name], strict=True)
                if value is not None
            ]
            for device, fields in series.items()
            if name in fields
        }
        step = max(1, -(-sum(map(len, seen.values())) // _POINTS))
        values = [
            {"s": at, name: value, "device": device}
            for device, pairs in seen.items()
            for at, value in pairs[::step]
        ]
        if not values:
            continue
        chart = alt.Chart(_data(values)).mark_line(point=True)
        chart = chart.encode(x="s:Q", y=f"{name}:Q", color="device:N")
        found = {device: [value for _, value in pairs] for device, pairs in seen.items() if pairs}
        table = [[d, f"{min(v):.4g}", f"{max(v):.4g}", str(len(v))] for d, v in found.items()]
        most = max(found, key=lambda device: max(found[device]))
        says = f"the most is {max(found[most]):.4g}, on {most}"
        title = f"{name} of each device, under load"
        columns = ["device", "least", "most", "looks"]
        yield Plot(title=title, svg=_drawn(chart, title), says=says, columns=columns, table=table)
