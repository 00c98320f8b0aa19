"""The options of pytest and of `llmdeploy`, as their own help has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import pytest

from docs_hooks.markdown import code, table
from pytest_llmdeploy import cli, plugin

_HEAD = """# Options

## pytest

[Reports](reports.md#options) says how they work together. What has a name in the last column can
stand in `[tool.pytest]` as well.

"""


class _Options:
    """A parser of pytest that takes down what the plugin adds."""

    def __init__(self) -> None:
        self.options: list[tuple[str, Mapping[str, Any]]] = []
        self.configured: set[str] = set()

    def getgroup(self, *_: str) -> Self:
        return self

    def addoption(self, name: str, **settings: object) -> None:
        self.options.append((name, settings))

    def addini(self, name: str, *_: str, **__: object) -> None:
        self.configured.add(name)


def page() -> str:
    """A table for pytest, and the help of every command of `llmdeploy`."""
    commands = "\n".join(f"## llmdeploy {name}\n\n{_help(one)}" for name, one in _commands())
    return f"{_HEAD}{_pytest()}\n{commands}"


def _pytest() -> str:
    found = _Options()
    plugin.pytest_addoption(cast("pytest.Parser", found))
    rows = []
    for name, settings in found.options:
        key = name.removeprefix("--").replace("-", "_")
        written = f"{name} {settings.get('metavar', '')}".strip()
        rows.append((code(written), settings["help"], code(key if key in found.configured else "")))
    return table(("option", "meaning", "configuration"), rows)


def _commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    parser = cli.command_parser()
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its commands
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - likewise
            yield from action.choices.items()


def _help(command: argparse.ArgumentParser) -> str:
    return f"```text\n{command.format_help()}```\n"
