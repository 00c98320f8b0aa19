"""Print how alike gates of one and the same healthy server are: their verdicts and their figures.

Launches the server of a spec once, and runs the whole gate on it again and again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import load_spec

_SPEC = Path("specs/tiny-llama-cpu.yaml")
# Of ten gates, how many may leave something undecided; none may fail.
_MOST_UNDECIDED = 0.1
_METRICS = ("ttft", "tpot", "e2el")
_POINTS = ("p50", "p90", "p99")

Entry = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when gates disagree more than they may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeat", description=__doc__)
    parser.add_argument("spec", type=Path, nargs="?", default=_SPEC)
    parser.add_argument("--runs", type=int, default=10, help="gates (default: 10)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-repeat-") as folder:
        server, process = launch(load_spec(options.spec), Path(folder, "server.log"), _say)
        try:
            entries = []
            for number in range(options.runs):
                entries.append(_gate(options.spec, server.url, Path(folder, f"{number}.json")))
                _say(f"{number + 1}: {_in_short(entries[-1])}")
        finally:
            process.stop()
    for text in _tables(entries):
        sys.stdout.write(f"\n{text}\n")
    failed, undecided = _count(entries, "FAIL"), _count(entries, "INCONCLUSIVE", "INVALID", "ERROR")
    reached = not failed and undecided <= _MOST_UNDECIDED * options.runs
    sys.stdout.write(
        f"\n{failed} of {len(entries)} gates failed, {undecided} left something undecided: "
        f"{'as' if reached else 'NOT as'} it was meant to be\n"
    )
    return 0 if reached else 1


def _gate(spec: Path, url: str, report: Path) -> Entry:
    arguments = ["--deploy-spec", str(spec), "--deploy-url", url, "--deploy-report", str(report)]
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if not report.exists():
        sys.exit(f"the gate wrote no report:\n{done.stdout}")
    (entry,) = json.loads(report.read_bytes())["specs"]
    assert isinstance(entry, dict)  # noqa: S101 - the report's schema says so
    return entry


def _in_short(entry: Entry) -> str:
    open_rows = (f"{row['item']} {row['status']}" for row in entry["rows"] if _is_open(row))
    return ", ".join([entry["verdict"], *open_rows])


def _is_open(row: Mapping[str, Any]) -> bool:
    return row["status"] != "PASS"


def _count(entries: Sequence[Entry], *statuses: str) -> int:
    """The gates with a row of one of these."""
    return sum(any(row["status"] in statuses for row in entry["rows"]) for entry in entries)


def _tables(entries: Sequence[Entry]) -> Iterator[str]:
    yield tabulate(_statuses(entries), ("row", "in all gates"), disable_numparse=True)
    head = ("workload", "figure", "least", "median", "most", "most / least")
    yield tabulate(_spreads(entries), head, disable_numparse=True)


def _statuses(entries: Sequence[Entry]) -> Iterator[Sequence[str]]:
    found: dict[str, Counter[str]] = {}
    for row in (row for entry in entries for row in entry["rows"]):
        if row["phase"] == "live":
            found.setdefault(row["item"], Counter())[row["status"]] += 1
    for item, counts in found.items():
        yield item, ", ".join(f"{count} {status}" for status, count in counts.items())


def _spreads(entries: Sequence[Entry]) -> Iterator[Sequence[str]]:
    # A gate that came to no traffic has its rows to say why.
    sent = [entry["traffic"] for entry in entries if entry["traffic"]]
    for workload in sent[0] if sent else ():
        traffic = [each[workload] for each in sent]
        yield _spread(workload, "requests", [sum(each["counts"].values()) for each in traffic])
        yield _spread(workload, "seconds", [each["seconds"] for each in traffic])
        for metric in _METRICS:
            for point in _POINTS:
                values = [each[metric].get(point) for each in traffic]
                yield _spread(workload, f"{metric.upper()} {point}, ms", values)


def _spread(workload: str, figure: str, values: Sequence[float | None]) -> Sequence[str]:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not min(known):
        return workload, figure, "—", "—", "—", "—"
    least, most = min(known), max(known)
    shown = (f"{value:,.4g}" for value in (least, statistics.median(known), most))
    return (workload, figure, *shown, f"{most / least:.2f}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
