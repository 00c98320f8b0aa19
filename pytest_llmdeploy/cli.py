"""`llmdeploy`: the same rooms without pytest."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llmdeploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    schema = commands.add_parser("schema", help="print the JSON Schema of the spec or the report")
    schema.add_argument("of", nargs="?", choices=("spec", "report"), default="spec")
    arguments = parser.parse_args(argv)
    sys.stdout.write(_schema(arguments.of))
    return 0


def _schema(of: str) -> str:
    if of == "report":
        file = Path(__file__).parent / "report" / "report.schema.json"
        return file.read_text(encoding="utf-8")
    from pytest_llmdeploy.spec import spec_schema  # noqa: PLC0415 - only this command needs it

    return json.dumps(spec_schema(), indent=2, ensure_ascii=False) + "\n"
