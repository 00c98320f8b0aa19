"""Serve until stdin ends or SIGTERM comes: `python -m tests.standin --port-file FILE`."""

import argparse
import asyncio
import os
import signal
import threading
from pathlib import Path

from aiohttp import web

from .server import Server
from .settings import Settings


async def serve(settings: Settings, port_file: Path) -> None:
    """Listen on a free port of the loopback, publish it, and wait to be stopped."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        Server(settings).app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    _publish(runner.addresses[0][1], port_file)
    threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    await stop.wait()
    await runner.cleanup()


def _publish(port: int, port_file: Path) -> None:
    draft = port_file.with_name(f"{port_file.name}.draft")
    draft.write_text(str(port))
    draft.replace(port_file)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not sys.stdin: its lock, held by a daemon thread, would abort the interpreter's exit.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description=__doc__)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="a JSON file of knobs")
    args = parser.parse_args()
    settings = Settings.from_json(args.settings.read_bytes()) if args.settings else Settings()
    asyncio.run(serve(settings, args.port_file))


if __name__ == "__main__":
    main()
