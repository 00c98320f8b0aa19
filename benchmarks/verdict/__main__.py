"""Print how often rules on a percentile are wrong, and how many requests they take.

Needs nothing but the package. One process; minutes.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from benchmarks.verdict.operating import Operating, operating
from benchmarks.verdict.rules import Binomial, Decide, EarlyStopping, Observed, Ours
from benchmarks.verdict.series import Autoregressive, Bursts
from pytest_llmdeploy.verdict import Rule

CAP, LONG = 3000, 10_000
FIXED = 1000  # requests of a run whose number is fixed before
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
DEPENDENCE = (0.0, 0.5, 0.9)
LENGTHS = (2, 5, 20)
P99 = Rule(0.99)
BESIDE: Mapping[str, Decide] = {
    "ours": Ours(P99),
    "observed p99": Observed(0.99, FIXED),
    "binomial": Binomial(0.99, FIXED),
    "MLPerf": EarlyStopping(0.99, FIXED),
}
SPRT = Rule(0.99, indifference=(0.005, 0.01))
WRONG = 0.05
# True fraction over the limit: the mean number of requests that was aimed at.
GOALS = {0.001: 700, 0.02: 1500, 0.05: 200}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="runs per cell (default: 400)")
    parser.add_argument("--seed", type=int, default=4, help="of every cell (default: 4)")
    options = parser.parse_args(arguments)
    for text in report(options.runs, options.seed):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    return 0


def report(runs: int, seed: int) -> Iterator[str]:
    """The tables, as they come."""
    began = time.process_time()
    yield _heading(runs, seed)
    beside = {
        (rho, over): operating(BESIDE, Autoregressive(rho, over), runs=runs, cap=CAP, seed=seed)
        for rho in DEPENDENCE
        for over in FRACTIONS
    }
    yield _table(
        f"p99, cap {CAP:,}: at most 1 % may be over",
        ("AR(1)", "over", *BESIDE),
        [
            (_rho(rho), f"{over:.1%}", *map(_cell, found.values()))
            for (rho, over), found in beside.items()
        ],
    )
    exact = _exactly(runs, seed)
    yield _table(
        "Ours, with exactly as many over as are allowed: either answer is wrong",
        ("percentile", "cap", *map(_rho, DEPENDENCE)),
        [
            (f"p{p * 100:g}", f"{cap:,}", *(_cell(exact[p, cap, rho]) for rho in DEPENDENCE))
            for p, cap in dict.fromkeys((p, cap) for p, cap, _ in exact)
        ],
    )
    burst_rows = list(_bursts(runs, seed))
    yield _table(
        f"Ours, p99, exactly 1 % over, in bursts of that mean length, cap {LONG:,}",
        ("mean length", "none declared", "declared"),
        [(f"{length}", _cell(bare), _cell(told)) for length, bare, told in burst_rows],
    )
    yield _table(
        "Ours, p99 with indifference: [0.5%, 1%], independent, cap 6,000",
        tuple(f"{over:.1%} over" for over in FRACTIONS),
        [tuple(map(_cell, _indifferent(runs, seed)))],
    )
    worst = {f"p{p * 100:g}, cap {cap:,}, {_rho(rho)}": row for (p, cap, rho), row in exact.items()}
    worst |= {f"bursts of {length}, declared": told for length, _, told in burst_rows}
    mean = {over: beside[0.0, over]["ours"].requests for over in GOALS}
    yield _table("Goals", ("goal", "got", ""), list(_goals(worst, mean)))
    yield f"Took {time.process_time() - began:.0f} s of one core."


def _heading(runs: int, seed: int) -> str:
    return (
        f"Rules on a percentile, simulated (python -m benchmarks.verdict --runs {runs} "
        f"--seed {seed})\nPython {platform.python_version()}, one process. Cells are P(pass) / "
        "P(fail) / mean requests; the rest is undecided.\n"
        "alpha = beta = 5 %; ours stops when it decides, or at the cap; observed p99, exact "
        "binomial\n(95 %) and MLPerf's early stopping (99 %, passes or is repeated) look once, at "
        f"{FIXED:,} requests.\nStandard error of 5 %: {(0.05 * 0.95 / runs) ** 0.5:.1%}; with a "
        "cap above 3,000, of half as many runs.\n"
    )


def _exactly(runs: int, seed: int) -> Mapping[tuple[float, int, float], Operating]:
    found = {}
    for p, cap in ((0.99, CAP), (0.99, LONG), (0.95, CAP), (0.9, CAP), (0.5, CAP)):
        for rho in DEPENDENCE:
            series = Autoregressive(rho, round(1 - p, 9))
            # A long series costs as much as three short ones.
            many = runs // 2 if cap == LONG else runs
            rules = {"ours": Ours(Rule(p))}
            found[p, cap, rho] = operating(rules, series, runs=many, cap=cap, seed=seed + 1)["ours"]
    return found


def _bursts(runs: int, seed: int) -> Iterator[tuple[int, Operating, Operating]]:
    for length in LENGTHS:
        rules = {"bare": Ours(P99), "told": Ours(Rule(0.99, burst=length))}
        found = operating(rules, Bursts(length, 0.01), runs=runs // 2, cap=LONG, seed=seed + 2)
        yield length, found["bare"], found["told"]


def _indifferent(runs: int, seed: int) -> Iterator[Operating]:
    for over in FRACTIONS:
        series = Autoregressive(0.0, over)
        yield operating({"": Ours(SPRT)}, series, runs=runs // 2, cap=6000, seed=seed + 3)[""]


def _goals(
    worst: Mapping[str, Operating], mean: Mapping[float, float]
) -> Iterator[tuple[str, str, str]]:
    for what, row in worst.items():
        reached = max(row.passed, row.failed) <= WRONG
        got = f"{row.passed:.1%} / {row.failed:.1%}"
        yield f"{what}: wrong ≤ {WRONG:.0%} each way", got, _reached(reached)
    for over, goal in GOALS.items():
        what = f"p99, independent, {over:.1%} over: mean requests ≤ {goal:,}"
        yield what, f"{mean[over]:,.0f}", _reached(mean[over] <= goal)


def _reached(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


def _cell(found: Operating) -> str:
    return f"{found.passed:.1%} / {found.failed:.1%} / {found.requests:,.0f}"


def _rho(rho: float) -> str:
    return f"AR(1) {rho:g}" if rho else "independent"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n\n{tabulate(rows, head, disable_numparse=True)}\n"


if __name__ == "__main__":
    sys.exit(main())
