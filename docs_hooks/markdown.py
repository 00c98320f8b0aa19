"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# In code, MkDocs takes a bar for itself, and shows whatever stands before it.
_BAR = re.compile(r"(`[^`]*`)|\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of these columns; a cell may have several lines and bars."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def code(text: object) -> str:
    """`text` as code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def _cell(text: str) -> str:
    return _BAR.sub(lambda found: found[1] or r"\|", " ".join(text.split()))
