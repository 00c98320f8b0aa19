"""The built-in checks: what each reads, its key, and when it passes."""

from __future__ import annotations

import inspect
from itertools import groupby

from docs_hooks.markdown import code, table
from pytest_llmdeploy.checks import Check, Registry
from pytest_llmdeploy.session import phase_of

_HEAD = """# The built-in checks

Each check is a function; what it asks for says what it reads, and when it runs: **plan** needs
nothing but the spec, **host** is before the launch, **live** while the server runs, **stopped**
after it. A check with a key runs when the spec gives that key, one without always, or when it
applies. Names in braces make a row of every workload and percentile.
`pytest specs/x.yaml::NAME` runs one.
[Your own](../how-to/own-checks.md) are made in the same way.

"""
# What compares and what is compared with; not what is read.
_GIVEN = {"expect", "required", "workload", "percentile"}


def page() -> str:
    """The checks by family; within one, in the order of the checklist."""
    found = sorted(Registry(), key=lambda check: check.family)
    families = groupby(found, key=lambda check: check.family)
    return _HEAD + "\n".join(_family(name, list(checks)) for name, checks in families)


def _family(name: str, checks: list[Check]) -> str:
    head = f"## {name.replace('_', ' ').capitalize()}\n\n{_about(checks[0])}\n\n"
    return head + "\n".join(_check(check) for check in checks)


def _about(check: Check) -> str:
    """What the family is about: the first sentence of its module."""
    return (inspect.getdoc(inspect.getmodule(check.function)) or "").partition("\n\n")[0]


def _check(check: Check) -> str:
    # The first line is the head, as a table of Markdown has one.
    head = ("row", check.item)
    rows = [
        ("key", _key(check)),
        ("phase", phase_of(check)),
        ("reads", ", ".join(code(name) for name in reads(check))),
        ("if not", check.hint[:1].upper() + check.hint[1:]),
    ]
    facts = table(head, [row for row in rows if row[1]])
    return f"### `{check.name}`\n\n{passes_when(check)}\n\n{facts}"


def reads(check: Check) -> list[str]:
    """The fixtures that a check looks at."""
    names = inspect.signature(check.function).parameters
    return [name for name in names if name not in _GIVEN]


def passes_when(check: Check) -> str:
    """The check's docstring, in a line."""
    return " ".join((inspect.getdoc(check.function) or "").split())


def _key(check: Check) -> str:
    if check.require is None:
        return f"none: {applies(check)}"
    path = check.require
    whole = path if path.startswith(("workloads.", "engine.")) else f"require.{path}"
    return code(whole) + (f", {applies(check)}" if check.when or check.launched else "")


def applies(check: Check) -> str:
    """To which specs a check applies."""
    about = inspect.getdoc(check.when) if check.when else ""
    said = f"when {about[:1].lower()}{about[1:].rstrip('.')}" if about else "always runs"
    return f"{said}, if the run launched the server" if check.launched else said
