"""The pages that are made from the code, none of which is in docs/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from docs_hooks import causes, checks, fixtures, keys, options, report

_CHANGES = Path(__file__).parent.parent / "CHANGELOG.md"

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/keys.md": keys.page,
    "reference/checks.md": checks.page,
    "reference/fixtures.md": fixtures.page,
    "reference/options.md": options.page,
    "reference/json.md": report.page,
    "reference/causes.md": causes.page,
    "changes.md": _CHANGES.read_text,
}
