"""The blocks of the README, the docs and the examples."""

from __future__ import annotations

import re

from tests.specs import REPOSITORY

DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
IDS = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]
BLOCK = re.compile(r"^```(\w*)[ ]?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')


def titled() -> dict[str, str]:
    """The files that the documents write, by their paths."""
    return {
        title[1]: body
        for document in DOCUMENTS
        for _, options, body in BLOCK.findall(document.read_text())
        if (title := TITLE.search(options))
    }
