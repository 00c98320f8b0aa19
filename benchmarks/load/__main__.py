"""Print how truly clients measure, beside a scripted server that logs the moment of every write.

The server has one core, the client another. Ours runs first, at every rate, some times over; then
the peers, as far as they are installed, keep up, and there is time.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tabulate import tabulate

from benchmarks.load.errors import Errors, Measured, median_of, of_distributions, of_each
from benchmarks.load.ours import Row
from benchmarks.load.peers import Aiperf, Guidellm, Load, Peer, VllmBench, measure
from benchmarks.load.server import TPOT_MS, TTFT_MS, Scripted, Served, compiled, serving

RATES = (3_700, 7_500, 15_000, 24_000, 50_000)
TOKENS = 128
SECONDS = 6.0
GOAL_MS = 1.0
# A client that was off by so much has shown what it can do, and is not run at higher rates.
_LOST_MS = 100.0
_PEER_SECONDS = 60.0
_ALL_SECONDS = 7.5 * 60.0
_SERVER_CORE, _CLIENT_CORE = 0, 1
HEAD = ("events/s", "client", "TTFT p50", "p99", "gap p50", "p99", "others")
LEGEND = f"""
Errors in ms. Each answer has {TOKENS} tokens, the first after {TTFT_MS} ms, the others {TPOT_MS} ms
apart; arrivals are Poisson, for {SECONDS:g} s.
"each": percentiles of the absolute error of every TTFT and every gap, the median of the runs. A
  TTFT counts from the scheduled arrival, so that being sent late is part of the error.
"as peers": percentile of the client minus percentile of the server's log of the same run, which is
  all that can be said of peers: they count from when they send, and do not tell which was which.
"others": cores that other processes kept busy meanwhile, who disturb the measurement.
"""


@dataclass
class Others:
    """Cores that were kept busy by processes which are no children of this one."""

    cores: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 where there is no second core, or no compiler."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--peers", type=Path, help="a folder of environments: aiperf, guidellm")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="token events per s")
    parser.add_argument("--runs", type=int, default=5, help="of ours at each rate")
    options = parser.parse_args(arguments)
    if not {_SERVER_CORE, _CLIENT_CORE} <= os.sched_getaffinity(0):
        sys.stderr.write("The server and the client need a core each\n")
        return 2
    peers: list[Peer] = []
    if options.peers:
        programs = options.peers.resolve()
        peers = [VllmBench(), Aiperf(programs / "aiperf/bin"), Guidellm(programs / "guidellm/bin")]
    os.sched_setaffinity(0, {_CLIENT_CORE})
    with tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        try:
            bench = Bench(compiled(Path(folder)), Path(folder))
        except FileNotFoundError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        sys.stdout.write(f"Fidelity of load clients on {platform.processor() or 'this machine'}\n")
        sys.stdout.write(LEGEND)
        own = {rate: list(bench.ours(rate, options.runs)) for rate in options.rates}
        for rate in options.rates:
            rows = [*own[rate], *bench.peers(rate, peers)]
            sys.stdout.write(f"\n{tabulate(rows, HEAD, disable_numparse=True)}\n")
            sys.stdout.flush()
    sys.stdout.write(f"\n{tabulate(bench.goals(), disable_numparse=True)}\n")
    return 0


class Bench:
    """Runs of clients against a fresh server each."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._until = time.monotonic() + _ALL_SECONDS
        self._ours: dict[int, Errors] = {}
        self._lost: dict[str, str] = {}

    def ours(self, rate: int, runs: int) -> Iterator[Sequence[str]]:
        """Rows of our own client."""
        each, as_peers, others = [], [], []
        for number in range(runs):
            with self._serving() as (server, other):
                report = _run_ours(server.url, rate / TOKENS, number)
            failed = [row.detail for row in report.values() if row.outcome != "ok"]
            if failed:
                yield (f"{rate:,}", "ours", f"{len(failed)} requests failed: {failed[0]}")
                return
            stamps = {user: (row.due, row.stamps) for user, row in report.items()}
            each.append(of_each(stamps, server.log))
            as_peers.append(of_distributions(_measured(stamps), server.log))
            others.append(other.cores)
        self._ours[rate] = median_of(each)
        noise = statistics.median(others)
        yield (f"{rate:,}", f"ours, each ({runs} runs)", *_cells(self._ours[rate], noise))
        yield ("", "ours, as peers", *_cells(median_of(as_peers), noise))

    def peers(self, rate: int, peers: Sequence[Peer]) -> Iterator[Sequence[str]]:
        """Rows of the others."""
        requests = round(rate / TOKENS * SECONDS)
        for peer in peers:
            left = self._until - time.monotonic()
            if lost := self._lost.get(peer.name):
                yield ("", peer.name, f"not run: {lost}")
                continue
            if left < _PEER_SECONDS / 2:
                yield ("", peer.name, "not run: the time of the benchmark is up")
                continue
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                with self._serving() as (server, other):
                    load = Load(server.url, rate / TOKENS, requests, TOKENS)
                    measured = measure(peer, load, Path(folder), min(left, _PEER_SECONDS))
                if isinstance(measured, str):
                    self._lost[peer.name] = f"at {rate:,}/s, {measured}"
                    yield ("", peer.name, measured)
                    continue
                errors = of_distributions(measured, server.log)
                if errors.ttft[0] > _LOST_MS:
                    self._lost[peer.name] = f"off by more than {_LOST_MS:g} ms at {rate:,}/s"
                yield ("", peer.name, *_cells(errors, other.cores))

    def goals(self) -> Iterator[Sequence[str]]:
        """Whether ours is as true as it was meant to be."""
        for rate, errors in self._ours.items():
            worst = max(*errors.ttft, *errors.gap)
            word = "reached" if worst <= GOAL_MS else "NOT reached"
            yield f"each ≤ {GOAL_MS:g} ms at {rate:,}/s", f"{worst:.2f} ms", word

    @contextmanager
    def _serving(self) -> Iterator[tuple[Scripted, Others]]:
        others = Others()
        began, busy, own = time.monotonic(), _busy_seconds(), _own_seconds()
        with serving(self._program, _SERVER_CORE) as server:
            yield server, others
        foreign = _busy_seconds() - busy - (_own_seconds() - own)
        others.cores = max(foreign / (time.monotonic() - began), 0.0)


def _run_ours(url: str, rate: float, seed: int) -> dict[int, Row]:
    options = {"rate": rate, "tokens": TOKENS, "seconds": SECONDS, "seed": seed}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.load.ours", url, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return msgspec.json.decode(done.stdout, type=dict[int, Row])


def _measured(stamps: Mapping[int, tuple[float, Sequence[float]]]) -> Measured:
    served = [Served(user, due, each) for user, (due, each) in stamps.items()]
    return Measured([each.ttft for each in served], [gap for each in served for gap in each.gaps])


def _cells(errors: Errors, others: float) -> Sequence[str]:
    return (*(f"{value:.2f}" for value in (*errors.ttft, *errors.gap)), f"{others:.2f}")


def _busy_seconds() -> float:
    """Of all cores since the machine was started."""
    user, nice, system, _idle, _wait, *rest = map(
        int, Path("/proc/stat").read_text().split(maxsplit=11)[1:9]
    )
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process, and of all children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
