"""`llmdeploy`: the same rooms without pytest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pytest_llmdeploy.secrets import redact


class RefusedError(Exception):
    """A command can't do what it is asked; the text is all that a person needs to see."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code is 2 where it refuses, with the reason on stderr."""
    arguments = command_parser().parse_args(argv)
    command = import_module(f"{__name__}.{arguments.command}")
    try:
        code: int = command.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the page has seen enough; Python must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RefusedError as error:
        sys.stderr.write(redact(f"llmdeploy {arguments.command}: {error}\n"))
        return 2
    return code


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmdeploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands)
    _add_init(commands)
    _add_capacity(commands)
    completion = commands.add_parser(
        "completion",
        help="print what completes this command in a shell",
        epilog='bash: eval "$(llmdeploy completion bash)"; zsh: the output as a file '
        "_llmdeploy in a folder of $fpath",
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    schema = commands.add_parser("schema", help="print the JSON Schema of the spec or the report")
    schema.add_argument("of", nargs="?", choices=("spec", "report"), default="spec")
    return parser


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="print what follows from a spec: layout, memory, prediction, alternatives",
        epilog="exit code: 0 feasible, 1 not feasible or not known, 2 not a valid spec",
    )
    plan.add_argument("spec", type=Path, help="a spec file")
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument(
        "--graph", choices=("json", "dot", "mermaid"), help="print the deployment graph"
    )
    form.add_argument(
        "--repair",
        action="store_true",
        help="print the smallest changes of the spec with which every plan check passes",
    )
    plan.add_argument(
        "--second-opinion",
        nargs="?",
        const="",
        metavar="MODEL",
        help="print what aiconfigurator-core expects beside our prediction; MODEL where it calls "
        "the model by another name",
    )


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = commands.add_parser("init", help="write a spec for what you have")
    way = init.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--from-command",
        metavar="COMMAND",
        help="the line that starts the server, `vllm serve …`, in one argument; - reads stdin",
    )
    way.add_argument(
        "--from-url",
        metavar="URL",
        help="a server that runs, as http://localhost:8000; VLLM_API_KEY is sent",
    )
    way.add_argument(
        "--from-manifest",
        metavar="FILE",
        help="a rendered Kubernetes manifest with the server; - reads stdin",
    )
    way.add_argument(
        "--model", metavar="ID", help="a model; the planner chooses its strategy on --device"
    )
    init.add_argument("--device", metavar="GPU", help="a GPU of the catalogue, or cpu")
    init.add_argument("--only", metavar="NAME", help="of several servers in a manifest, this one")
    init.add_argument("--devices-per-node", type=count, metavar="N")
    init.add_argument("--nodes", type=count, metavar="N")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")
    init.add_argument("--force", action="store_true", help="overwrite FILE")


def _add_capacity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    capacity = commands.add_parser(
        "capacity",
        help="find the highest rate at which a running server holds every limit of a workload",
        epilog="exit code: 0 an end of the interval was found, 1 nothing could be decided, "
        "2 wrong usage, 130 Ctrl-C; an API key is taken from VLLM_API_KEY",
    )
    capacity.add_argument("spec", type=Path, help="a spec file")
    capacity.add_argument("--url", required=True, help="the server, as http://localhost:8000")
    capacity.add_argument("--workload", metavar="NAME", help="default: the only one with a rate")
    capacity.add_argument(
        "--precision",
        default="10%",
        metavar="SHARE",
        help="how far apart the ends of the interval may be (default: 10%%)",
    )
    capacity.add_argument(
        "--rates", metavar="A,B,…", help="try these rates per second instead of searching"
    )
    capacity.add_argument(
        "--time", default="1h", help="begin no trial after this time (default: 1h)"
    )
    capacity.add_argument("--json", action="store_true", help="print it as JSON")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}: write a whole number, 1 or more")
    return int(text)
