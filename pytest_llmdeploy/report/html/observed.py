"""What was observed: the latencies and the course of a workload, and the devices meanwhile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from pytest_llmdeploy.load.samples import MOST_REQUESTS
from pytest_llmdeploy.report.checklist import Checklist
from pytest_llmdeploy.report.html.drawing import INK, MOST_POINTS, Figure, chart, drawn, thinned
from pytest_llmdeploy.units import show

_METRICS = ("ttft", "tpot", "e2el", "stall")
_BINS = 60
_PERCENTILES = (50, 90, 99)
_DASHED, _WHOLE = (6, 4), (1, 0)


def traffic(
    checklist: Checklist, workload: str, found: Mapping[str, Any], when: str = ""
) -> Iterator[Figure]:
    """The latencies and the course of what was sent of a workload; `when` says when, where that
    was not the traffic that its own rows judge.
    """
    requests: Mapping[str, Sequence[Any]] = found.get("requests") or {}
    for metric in _METRICS if requests else ():
        if times := sorted(time for time in requests[metric] if time is not None):
            asked = len(requests[metric])
            # Of more, the report has no more.
            of = f"the first {asked:,}" if asked == MOST_REQUESTS else f"{asked:,}"
            lines = list(_lines(checklist, workload, metric, found, is_other=bool(when)))
            yield _distribution(f"{workload}{when}", metric, times, of, lines)
    if requests:
        yield from _timeline(f"{workload}{when}", requests)


@dataclass(frozen=True, slots=True)
class _Line:
    """A latency that is drawn across the distribution."""

    name: str
    ms: float
    dash: Sequence[int]


def _lines(
    checklist: Checklist, workload: str, metric: str, found: Mapping[str, Any], *, is_other: bool
) -> Iterator[_Line]:
    """The limits of the workload's rows, which hold in whatever is sent of it; and the bounds,
    which are of the requests that the rows judged, up to the one that decided.
    """
    # Not those of another workload whose name begins alike.
    its = re.compile(rf"::{metric}\[{re.escape(workload)}-p[\d.]+\]$")
    for row in checklist.rows:
        if row.unit != "ms" or not its.search(row.id):
            continue
        if row.limit is not None:
            yield _Line(f"limit of {row.item}", row.limit, _DASHED)
        if row.bound is not None and not is_other:
            judged, known = row.evidence.get("n"), found.get(metric, {}).get("n")
            of = f" from the first {judged:,} of {known:,} requests" if judged and known else ""
            yield _Line(f"bound of {row.item}{of}", row.bound, _WHOLE)


def _distribution(
    workload: str, metric: str, times: Sequence[float], asked: str, lines: Sequence[_Line]
) -> Figure:
    """The share of the requests that have the metric at or below each latency."""
    step = -(-len(times) // (MOST_POINTS - 1))
    values = [
        {"ms": time, "share": number / len(times)}
        for number, time in enumerate(times, 1)
        if number % step == 0 or number == len(times)
    ]
    curve = chart(values).mark_line(interpolate="step-after", color=INK)
    share = alt.Y("share:Q", title="share of requests", scale=alt.Scale(domain=[0, 1]))
    curve = curve.encode(x=alt.X("ms:Q", title="ms"), y=share)
    points = [(f"p{part}", times[-(-len(times) * part // 100) - 1]) for part in _PERCENTILES]
    title = f"{metric.upper()} of {workload}, as observed"
    observed = ", ".join(f"{name} {show(time, 'ms')}" for name, time in points)
    drawn_lines = [(line.name, line.ms) for line in lines]
    return Figure(
        title=title,
        svg=drawn(alt.layer(curve, _across(lines)) if lines else curve, title),
        says="; ".join(
            [
                f"{len(times):,} of {asked} requests, {observed}",
                *(f"{name}: {show(ms, 'ms')}" for name, ms in drawn_lines),
            ]
        ),
        columns=["Figure", "Latency"],
        table=[[name, show(ms, "ms")] for name, ms in [*points, *drawn_lines]],
    )


def _across(lines: Sequence[_Line]) -> alt.Chart:
    """The lines in one legend: each has a colour, and limits are dashed."""
    names = [line.name for line in lines]
    rules = chart([{"ms": line.ms, "line": line.name} for line in lines]).mark_rule(strokeWidth=2)
    found: alt.Chart = rules.encode(
        x="ms:Q",
        color=alt.Color(
            "line:N",
            title=None,
            scale=alt.Scale(domain=names),
            # A line of its own for a long name, and room for a dash to be seen.
            legend=alt.Legend(columns=1, symbolSize=900),
        ),
        strokeDash=alt.StrokeDash(
            "line:N",
            title=None,
            scale=alt.Scale(domain=names, range=[[*line.dash] for line in lines]),
        ),
    )
    return found


def _timeline(workload: str, requests: Mapping[str, Sequence[Any]]) -> Iterator[Figure]:
    """Arrivals, requests in flight, TTFT and stalls over the seconds of the measurement."""
    due = requests["due"]
    if not due:
        return
    end = max([*due, *requests["ended"]])
    flying = _in_flight(requests)
    most = MOST_POINTS // 4
    panels = [
        ("arrivals", _arrivals(due, end), "bar"),
        ("in flight", thinned(flying, most), "line"),
        ("TTFT (ms)", thinned(_since(due, requests["ttft"]), most), "point"),
        ("stall (ms)", thinned(_since(due, requests["stall"]), most), "point"),
    ]
    panels = [panel for panel in panels if panel[1]]
    at, peak = max(flying, key=lambda pair: pair[1])
    figures = [
        ("requests", f"{len(due):,}"),
        ("seconds", f"{end:.1f}"),
        ("most in flight", f"{peak:.0f}, at {at:.1f} s"),
        *((f"highest {name}", f"{max(v for _, v in pairs):.4g}") for name, pairs, _ in panels[2:]),
    ]
    title = f"The course of {workload}"
    yield Figure(
        title=title,
        svg=drawn(alt.vconcat(*(_panel(*panel, end) for panel in panels)), title),
        says=", ".join(f"{name}: {value}" for name, value in figures),
        columns=["Figure", "Value"],
        table=figures,
    )


def _panel(name: str, pairs: Sequence[tuple[float, float]], mark: str, end: float) -> alt.Chart:
    base = chart([{"s": at, "value": value} for at, value in pairs], height=90)
    marked: alt.Chart = {
        "bar": base.mark_bar(size=680 / _BINS - 1),
        "line": base.mark_line(interpolate="step-after"),
        "point": base.mark_point(filled=True, size=12, opacity=0.6),
    }[mark]
    seconds = alt.X("s:Q", title="s", scale=alt.Scale(domain=[0, end], nice=False))
    values = alt.Y("value:Q", title=name, axis=alt.Axis(tickCount=4))
    panel: alt.Chart = marked.encode(x=seconds, y=values)
    return panel


def _arrivals(due: Sequence[float], end: float) -> list[tuple[float, float]]:
    """How many came in each part of the time, at its middle."""
    width = (end or 1.0) / _BINS
    counted = Counter(min(_BINS - 1, max(0, int(at / width))) for at in due)
    return [((part + 0.5) * width, counted[part]) for part in range(_BINS)]


def _in_flight(requests: Mapping[str, Sequence[Any]]) -> list[tuple[float, float]]:
    changes = [*((at, 1) for at in requests["due"]), *((at, -1) for at in requests["ended"])]
    running, found = 0, []
    for at, change in sorted(changes):
        running += change
        found.append((at, float(running)))
    return found


def _since(due: Sequence[float], column: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(at, time) for at, time in zip(due, column, strict=True) if time is not None]


def devices(looks: Mapping[str, Any]) -> Iterator[Figure]:
    """A figure for each field that was read under load, with a line for each device."""
    series: Mapping[str, Mapping[str, Sequence[float | None]]] = looks.get("series", {})
    for name in dict.fromkeys(name for fields in series.values() for name in fields):
        seen = {
            device: pairs
            for device, fields in series.items()
            if name in fields and (pairs := _looks(looks["times"], fields[name]))
        }
        if seen:
            yield _field(name, seen)


def _looks(times: Sequence[float], column: Sequence[float | None]) -> list[tuple[float, float]]:
    """What was seen; a device that was lost has fewer looks than there are times."""
    return [(at, seen) for at, seen in zip(times, column, strict=False) if seen is not None]


def _field(name: str, seen: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    most = max(1, MOST_POINTS // len(seen))
    values = [
        {"s": at, "value": value, "device": device}
        for device, pairs in seen.items()
        for at, value in thinned(pairs, most)
    ]
    # A line needs two looks to be seen.
    lines = chart(values, height=140).mark_line(point=len(values) <= _BINS)
    lines = lines.encode(
        x="s:Q",
        y=alt.Y("value:Q", title=name, scale=alt.Scale(zero=False), axis=alt.Axis(format="~s")),
        color=alt.Color("device:N", sort=None, title=None),
    )
    found = {device: [value for _, value in pairs] for device, pairs in seen.items()}
    highest = max(found, key=lambda device: max(found[device]))
    title = f"{name} of each device, under load"
    return Figure(
        title=title,
        svg=drawn(lines, title),
        says=f"the highest is {max(found[highest]):.4g}, on {highest}",
        columns=["Device", "Least", "Most", "Looks"],
        table=[[d, f"{min(v):.4g}", f"{max(v):.4g}", str(len(v))] for d, v in found.items()],
    )
