"""Print what starts and stops of a vLLM in a row leave behind, and how much longer a start takes
than by hand.

All are of the tiny model on the CPU, over one rank and in as few processes as vLLM has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
from tabulate import tabulate

from pytest_llmdeploy.serving.command import launch_command
from pytest_llmdeploy.serving.process import free_port
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import Spec, load_spec
from tests.faults.specs import write
from tests.leftovers import Family, snapshot

# A start of ours may take so much longer than one by hand.
_MOST_SECONDS = 1.0
_POLL_SECONDS = 0.05
_START_SECONDS = 180.0
_STOP_SECONDS = 30.0
_PROBE = {"prompt": [11, 12, 13, 14], "max_tokens": 4, "temperature": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when something is left, or a start takes too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starts", description=__doc__)
    parser.add_argument("--starts", type=int, default=50, help="in a row (default: 50)")
    parser.add_argument("--pairs", type=int, default=3, help="ours and by hand (default: 3)")
    options = parser.parse_args(arguments)
    family = Family()
    with tempfile.TemporaryDirectory(prefix="starts-") as folder:
        spec = load_spec(write(Path(folder), "TP 1", {})[0])
        scratch = Path(folder, "t")
        scratch.mkdir()
        # Of the server, and of what launches it here.
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        log = Path(folder, "server.log")
        left = _repeat(spec, log, options.starts, family, scratch) if options.starts else 0
        more = _compare(spec, log, options.pairs, family) if options.pairs else 0.0
    return 1 if left or more > _MOST_SECONDS else 0


def _repeat(spec: Spec, log: Path, starts: int, family: Family, scratch: Path) -> int:
    """How many things are there afterwards that were not before."""
    before, took = snapshot(family, scratch), []
    for number in range(starts):
        took.append(_launch(spec, log))
        _say(f"{number + 1} of {starts}: {took[-1]:.1f} s")
    after = snapshot(family, scratch)
    rows = [
        (kind, len(before[kind]), len(after[kind]), *_new(before, after, kind)) for kind in before
    ]
    head = ("kind", "before", f"after {starts} starts", "new", "which")
    _print(tabulate(rows, head, disable_numparse=True))
    _print(f"a start and a stop: median {statistics.median(took):.1f} s")
    return sum(len(after[kind] - before[kind]) for kind in before)


def _new(
    before: Mapping[str, set[str]], after: Mapping[str, set[str]], kind: str
) -> tuple[int, str]:
    found = sorted(after[kind] - before[kind])
    return len(found), ", ".join(found[:3])


def _compare(spec: Spec, log: Path, pairs: int, family: Family) -> float:
    """By how many seconds the median of ours is longer."""
    ours, by_hand = [], []
    for number in range(pairs):
        # Whoever comes second has the files in memory: they take turns in that, too.
        for ours_now in (True, False) if number % 2 else (False, True):
            seconds = _launch(spec, log, stopped=False) if ours_now else _by_hand(spec, log, family)
            (ours if ours_now else by_hand).append(seconds)
            _say(f"{'ours' if ours_now else 'by hand'}: {seconds:.2f} s")
    rows = [(name, *_spread(found)) for name, found in (("ours", ours), ("by hand", by_hand))]
    _print(tabulate(rows, ("start to first completion", "n", "least", "median", "most")))
    more = statistics.median(ours) - statistics.median(by_hand)
    _print(f"ours takes {more:+.2f} s, at most {_MOST_SECONDS:+.2f} s")
    return more


def _spread(found: Sequence[float]) -> Sequence[str]:
    return (str(len(found)), *(f"{f(found):.2f}" for f in (min, statistics.median, max)))


def _launch(spec: Spec, log: Path, *, stopped: bool = True) -> float:
    """Seconds of one start of ours; with the stop where that counts."""
    began = time.monotonic()
    _, process = launch(spec, log, lambda _text: None)
    ready = time.monotonic()
    if left := process.stop().processes:
        sys.exit(f"the stop left {', '.join(left)}")
    return (time.monotonic() if stopped else ready) - began


def _by_hand(spec: Spec, log: Path, family: Family) -> float:
    """Seconds of one start of the same command, until it has answered a completion."""
    port = free_port()
    command = launch_command(spec, port)
    began = time.monotonic()
    with log.open("wb") as output:
        server = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.environment},
        )
    try:
        while not _is_healthy(port):
            if server.poll() is not None or time.monotonic() - began > _START_SECONDS:
                sys.exit(f"vLLM does not start by hand:\n{log.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        _complete(spec, port)
        return time.monotonic() - began
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
        for process in family.alive([server.pid]):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait()


def _is_healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200  # noqa: PLR2004
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _complete(spec: Spec, port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": spec.served_model, **_PROBE})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:  # noqa: PLR2004
        sys.exit(f"no completion by hand: {answer.status} {answer.read()!r}")
    connection.close()


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
