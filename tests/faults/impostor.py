"""The stand-in under vLLM's own command line, with an engine and two workers below it.

As with vLLM, the engine and the workers outlive the API process unless somebody ends them, and the
API process ends, with exit code 0, when the engine does. `IMPOSTOR` holds the stand-in's settings.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from aiohttp import web

from tests.standin.server import Server
from tests.standin.settings import Settings

_ENGINE = "VLLM::EngineCore"
_WORKERS = " ".join(f"(exec -a VLLM::Worker_TP{rank} sleep 600) &" for rank in (0, 1))


def package(folder: Path) -> Path:
    """A package `vllm` in `folder` that has nothing but this server; what PYTHONPATH needs."""
    module = folder / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    for parent in (module, module.parent, module.parent.parent):
        (parent / "__init__.py").touch()
    (module / "api_server.py").write_text("from tests.faults.impostor import main\n\nmain()\n")
    return folder


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_known_args()[0].port
    settings = Settings.from_json(os.environ.get("IMPOSTOR", "{}"))
    engine = subprocess.Popen([_ENGINE, "-c", f"{_WORKERS} wait"], executable="/bin/bash")
    threading.Thread(target=_end_with, args=[engine], daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    web.run_app(
        Server(settings).app(),
        host="127.0.0.1",
        port=port,
        print=lambda *_: None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        access_log_format='"%r" %s',
    )


def _end_with(engine: subprocess.Popen[bytes]) -> None:
    engine.wait()
    sys.stdout.write("ERROR Engine core proc EngineCore died unexpectedly, shutting down client.\n")
    sys.stdout.flush()
    os._exit(0)
