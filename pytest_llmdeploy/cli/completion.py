"""`llmdeploy completion`: what a shell needs to complete our commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_llmdeploy.cli import RefusedError, command_parser
from pytest_llmdeploy.facts import gpus, model_configs


def run(arguments: argparse.Namespace) -> int:
    try:
        import shtab  # noqa: PLC0415 - of the extra
    except ImportError:
        message = "needs shtab: pip install 'pytest-llmdeploy[completion]'"
        raise RefusedError(message) from None
    parser = command_parser()
    known = {"device": [*gpus(), "cpu"], "model": list(model_configs())}
    for action in _actions(parser):
        if action.type is Path or action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in known:
            action.choices = known[action.dest]
    sys.stdout.write(shtab.complete(parser, arguments.shell) + "\n")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a parser and of its commands."""
    for action in parser._actions:  # noqa: SLF001 - as shtab does
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions(command)
