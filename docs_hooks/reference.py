"""MkDocs calls this: adds the pages that are made from the code, none of which is in docs/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs_hooks import causes, checks, keys, options, report

_REPOSITORY = Path(__file__).parent.parent

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/keys.md": keys.page,
    "reference/checks.md": checks.page,
    "reference/options.md": options.page,
    "reference/json.md": report.page,
    "reference/causes.md": causes.page,
    "changes.md": (_REPOSITORY / "CHANGELOG.md").read_text,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page at its place."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
