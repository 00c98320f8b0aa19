"""vLLM, asked in a process of its own whether it accepts a command line. Nothing is started.

    acceptance.py ANSWER PLATFORM ARGUMENTS...

It needs nothing but vLLM and the standard library. ANSWER is the JSON file that it writes: the
`version` of vLLM and the `platform` that it is for, and unless that is another than PLATFORM, whose
rules are others, the `refusal`, empty when it accepts; or why vLLM is `missing`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_WRAPPINGS = ("Value error, ", "Assertion failed, ")


def main(argv: Sequence[str]) -> None:
    answer, platform, *arguments = argv
    # Nobody reads the answer when whoever asked is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path(answer).write_text(json.dumps(_answer(platform, arguments)), encoding="utf-8")


def _answer(platform: str, arguments: Sequence[str]) -> Mapping[str, str]:
    try:
        import vllm  # noqa: PLC0415 - it takes seconds, and may not be there
        from vllm.platforms import current_platform  # noqa: PLC0415
    except ImportError as error:
        return {"missing": str(error)}
    found = {"version": str(vllm.__version__), "platform": str(current_platform.device_type)}
    return found if found["platform"] != platform else {**found, "refusal": _refusal(arguments)}


def _refusal(arguments: Sequence[str]) -> str:
    """VLLM's own words; empty when it accepts."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _configure(arguments)
    except SystemExit:
        return said.getvalue().strip().rpartition("error: ")[2] or "its parser gives no reason"
    except Exception as error:  # noqa: BLE001 - whatever vLLM refuses with
        return _sentence(error)
    return ""


def _configure(arguments: Sequence[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.utils import argparse_utils  # noqa: PLC0415

    parser: Any = argparse_utils.FlexibleArgumentParser
    parsed = make_arg_parser(parser()).parse_args([*arguments])
    server = UsageContext.OPENAI_API_SERVER
    AsyncEngineArgs.from_cli_args(parsed).create_engine_config(usage_context=server)


def _sentence(error: Any) -> str:
    """What an error says, without what pydantic wraps around it."""
    text = str(error)
    with contextlib.suppress(Exception):
        text = error.errors(include_url=False)[0]["msg"]
    for wrapping in _WRAPPINGS:
        text = text.removeprefix(wrapping)
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


if __name__ == "__main__":
    main(sys.argv[1:])
