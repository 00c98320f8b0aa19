"""A figure of the page, and how a chart becomes SVG in the page's own colour of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup, escape

MOST_POINTS = 2000
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
        "axis": {**_AXES, "gridColor": INK, "gridOpacity": 0.15},
        "legend": {"labelColor": INK, "titleColor": INK, "labelLimit": 0},
        "view": {"stroke": None},
    }
    svg: str = vl_convert.vegalite_to_svg(described)
    # In the page, an SVG takes the colour of the text around it.
    return labelled(Markup(svg.replace(INK, "currentColor")), title)  # noqa: S704 - vega escapes


def labelled(svg: Markup, title: str) -> Markup:
    """The SVG as one picture with a name, for those who can't see it."""
    label = Markup('<svg role="img" aria-label="{}" ').format(title)
    return Markup(str(svg).replace("<svg ", str(escape(label)), 1))  # noqa: S704 - both are escaped


def thinned(pairs: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` pairs in their order: of those that lie together, the one with the most."""
    step = max(1, -(-len(pairs) // most))
    parts = (pairs[start : start + step] for start in range(0, len(pairs), step))
    return [max(part, key=lambda pair: pair[1]) for part in parts]
