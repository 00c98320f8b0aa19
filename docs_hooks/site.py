"""What MkDocs calls while it builds the site."""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_hooks.assets import foreign
from docs_hooks.pages import PAGES

_log = get_plugin_logger(__name__)
# The word behind "text" tells the tests what a block is; MkDocs takes a block with it for none.
_MARK = re.compile(r"^```text \w+$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """The text of a page with blocks as MkDocs knows them."""
    return _MARK.sub("```text", markdown)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Warn of what is wrong with a page, which fails a strict build."""
    for address in foreign(output):
        _log.warning("%s loads %s", page.file.src_uri, address)
    if "```" in output:
        _log.warning("%s has a block that was not understood", page.file.src_uri)
    return output
