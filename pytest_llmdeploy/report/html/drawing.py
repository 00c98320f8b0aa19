"""A figure of the page, and how a chart becomes SVG in the page's own colour of text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup, escape

MOST_POINTS = 2000
# What HTML has no character for, and what turns the order of the text around it.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
# Stands for the colour of the text, which differs between light and dark.
INK = "#010203"
_AXES = dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), INK)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing, what it says in a sentence, and its figures as a table."""

    title: str
    svg: Markup
    says: str
    columns: Sequence[str]
    table: Sequence[Sequence[str]]


def chart(values: Sequence[Mapping[str, Any]], height: int = 240) -> alt.Chart:
    """A chart of the values, as wide as all others."""
    data = alt.Data(values=values)  # type: ignore[no-untyped-call]
    return alt.Chart(data, width=680, height=height)


def drawn(what: Any, title: str) -> Markup:
    """A chart, or charts together, as SVG."""
    described: dict[str, Any] = what.to_dict()
    described["config"] = {
        "background": "transparent",
        "font": "sans-serif",
        # The reader's letters may be wider than those that the plot was measured with.
        "axis": {
            **_AXES,
            "gridColor": INK,
            "gridOpacity": 0.15,
            "labelFlush": False,
            "titlePadding": 12,
        },
        # Below the plot there is room for labels, however wide the reader's letters are.
        "legend": {
            "labelColor": INK,
            "titleColor": INK,
            "labelLimit": 0,
            "orient": "bottom",
            "columns": 5,
            "columnPadding": 30,
        },
        "view": {"stroke": None},
    }
    svg: str = vl_convert.vegalite_to_svg(readable(json.dumps(described, ensure_ascii=False)))
    # In the page, an SVG takes the colour of the text around it.
    return labelled(Markup(svg.replace(INK, "currentColor")), title)  # noqa: S704 - vega escapes


def labelled(svg: Markup, title: str) -> Markup:
    """The SVG as one picture with a name, for those who can't see it."""
    label = Markup('<svg role="img" aria-label="{}" ').format(title)
    return Markup(str(svg).replace("<svg ", str(escape(label)), 1))  # noqa: S704 - both are escaped


def readable(text: str) -> str:
    """The text with a sign in the place of each character that a page can't show."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def thinned(pairs: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` pairs in their order: of those that lie together, the one with the most."""
    step = max(1, -(-len(pairs) // most))
    parts = (pairs[start : start + step] for start in range(0, len(pairs), step))
    return [max(part, key=lambda pair: pair[1]) for part in parts]
