"""The stand-in as a command with vLLM's arguments: `python -m tests.serving.fake_vllm --port N`."""

from __future__ import annotations

import argparse
import os

from aiohttp import web

from tests.standin.server import Server
from tests.standin.settings import Settings


def main() -> None:
    """Serves until SIGTERM; as vLLM does, it wants VLLM_API_KEY when that is set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--worker-extension-cls", help="it has no workers")
    args = parser.parse_args()
    settings = Settings.from_json(args.settings)
    settings = settings.updated({"api_key": os.environ.get("VLLM_API_KEY", "")})
    web.run_app(
        Server(settings).app(),
        host="127.0.0.1",
        port=args.port,
        print=lambda *_: None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )


if __name__ == "__main__":
    main()
