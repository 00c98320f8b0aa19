"""`llmdeploy schema`: the JSON Schemas that are shipped, for editors and readers of reports."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files

from pytest_llmdeploy.spec import spec_schema


def run(arguments: argparse.Namespace) -> int:
    if arguments.of == "report":
        schema = files("pytest_llmdeploy.report") / "report.schema.json"
        sys.stdout.write(schema.read_text(encoding="utf-8"))
    else:
        sys.stdout.write(json.dumps(spec_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0
