"""The causes of a server's end that are known."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from docs_hooks.markdown import table

_HEAD = """# Why a server did not start, or died

The lines of a server's log are searched for these, the most telling first; the row says the cause
and the hint. [Serving](../concepts/serving.md) has the rest: when a start is given up, and what a
hang is.

"""


def page() -> str:
    """A table of the causes, in the order in which they are looked for."""
    text = (files("pytest_llmdeploy.serving") / "causes.json").read_text(encoding="utf-8")
    causes: dict[str, dict[str, Any]] = json.loads(text)["causes"]
    rows = [(c["cause"], c["hint"], f"`{c['pattern']}`") for c in causes.values()]
    return _HEAD + table(("cause", "what to change", "pattern in the log"), rows)
