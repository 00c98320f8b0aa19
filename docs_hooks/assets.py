"""What a page loads from elsewhere: nothing may be, so that the site can be read offline."""

from __future__ import annotations

import re

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|icon|preload|preconnect|manifest))"
    r"[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)",
    re.IGNORECASE,
)


def foreign(html: str) -> list[str]:
    """The addresses of scripts, styles, fonts and pictures that are not the site's own."""
    return [next(filter(None, found)) for found in _LOADED.findall(html)]
