"""`llmdeploy capacity`: up to which rate a running server holds every limit of a workload."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tabulate import tabulate

from pytest_llmdeploy import deployment
from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.page import WIDTH
from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.load.capacity import Capacity, find_capacity, sweep
from pytest_llmdeploy.load.claims import Budget
from pytest_llmdeploy.load.runner import run_trial
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.load.trial import Trial, at_rate, holds
from pytest_llmdeploy.secrets import redact, redacted
from pytest_llmdeploy.serving import ServerFailedError
from pytest_llmdeploy.spec import Spec, SpecError, Workload, load_spec, nearest
from pytest_llmdeploy.spec.attach import checked_url
from pytest_llmdeploy.units import Duration, Fraction, Rate, show

_HEADERS = ("Rate", "Served", "TTFT p50", "p99", "TPOT p50", "p99", "Holds")
_COLUMNS = ("ttft p50", "ttft p99", "tpot p50", "tpot p99")
_INTERRUPTED = 130
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Question:
    """What is asked: with `rates` these are tried, else the interval is searched for."""

    spec: Spec
    workload: Workload
    rates: Sequence[float]
    precision: float
    seconds: float


def run(arguments: argparse.Namespace) -> int:
    question = _question(arguments)
    line = _StatusLine()
    spec = question.spec.attached_to(arguments.url)
    alone = spec.model_copy(update={"workloads": (question.workload,)})
    # The log is where a launched server writes: this one was started by somebody else.
    attached = Deployment(alone, Path("/dev/null"), arguments.url, line.show)
    try:
        found = _answer(question, attached.target(), line)
    except (deployment.RefusedError, ServerFailedError) as error:
        line.clear()
        text = redact(str(error)).replace("--deploy-url", "--url")
        sys.stderr.write(f"llmdeploy capacity: {text}\n")
        return 1
    except KeyboardInterrupt:
        line.clear()
        return _INTERRUPTED
    line.clear()
    sys.stdout.write(
        _json(question, found) if arguments.json else redact(page(question.workload, found))
    )
    if found.was_interrupted:
        return _INTERRUPTED
    return 1 if found.passed is None and found.failed is None else 0


def _question(arguments: argparse.Namespace) -> _Question:
    """What is asked for.

    Raises:
        RefusedError: when that can't be asked; the text says why.
    """
    try:
        spec = load_spec(arguments.spec)
    except SpecError as error:
        raise RefusedError(str(error)) from None
    _parsed("--url", checked_url, arguments.url)
    precision = _parsed("--precision", Fraction.parse, arguments.precision)
    if not precision:
        raise RefusedError("--precision: an interval without a width takes for ever")
    given = arguments.rates.split(",") if arguments.rates is not None else []
    rates = [_parsed("--rates", _rate, text.strip()) for text in given]
    seconds = _parsed("--time", Duration.parse, arguments.time).seconds
    return _Question(spec, _workload(spec, arguments.workload), rates, precision, seconds)


def _parsed(option: str, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise RefusedError(f"{option}: {error}") from None


def _rate(text: str) -> Rate:
    rate = Rate.parse(text)
    if not rate:
        raise ValueError("a rate of 0 sends nothing")
    return rate


def _workload(spec: Spec, name: str | None) -> Workload:
    names = [workload.name for workload in spec.workloads]
    if name is not None and name not in names:
        raise RefusedError(
            f"--workload: {spec.source.path} has no {name!r}: {nearest(name, names)}"
        )
    chosen = [
        workload
        for workload in spec.workloads
        if workload.name == name or (name is None and workload.rate is not None)
    ]
    if len(chosen) > 1:
        raise RefusedError(f"--workload: which one of {', '.join(w.name for w in chosen)}?")
    if not chosen or chosen[0].rate is None:
        raise RefusedError(f"{spec.source.path}: only a workload with a rate has a capacity")
    if not chosen[0].require.has_limit:
        message = f"the workload {chosen[0].name!r} requires nothing that could stop holding"
        raise RefusedError(f"{spec.source.path}: {message}")
    return chosen[0]


def _answer(question: _Question, target: Target, line: _StatusLine) -> Capacity:
    budget = Budget.of(question.spec.model_copy(update={"workloads": (question.workload,)}))

    def try_at(rate: float) -> Trial:
        trial = holds(run_trial(at_rate(question.workload, rate), budget, target))
        line.tell(f"{show(rate, '1/s')}: {_told(trial)} in {show(trial.seconds * 1000, 'ms')}")
        return trial

    if question.rates:
        return sweep(try_at, question.rates, most_seconds=question.seconds)
    return find_capacity(
        try_at,
        float(question.workload.rate or 0.0),
        precision=question.precision,
        most_seconds=question.seconds,
    )


def page(workload: Workload, found: Capacity) -> str:
    """The trials by rate, what they say together, and what did not hold."""
    trials = sorted(found.trials, key=lambda trial: trial.rate)
    lines = []
    if trials:
        table = tabulate(
            [_row(trial) for trial in trials], _HEADERS, "simple", disable_numparse=True
        )
        lines += [f"{workload.name}, latencies in ms", "", *table.splitlines(), ""]
    for trial in trials:
        if trial.reason:
            named = " ".join(part for part in (trial.limit, trial.reason) if part)
            lines += _wrapped(f"{show(trial.rate, '1/s')}: {named}")
    lines += _wrapped(f"Capacity, {workload.name}: {found}")
    lines += _knee(found)
    if found.stopped:
        lines += _wrapped(f"Stopped: {found.stopped}")
    return "\n".join(lines) + "\n"


def _row(trial: Trial) -> Sequence[str]:
    cells = (_cell(trial.latencies.get(column)) for column in _COLUMNS)
    return [show(trial.rate, "1/s"), show(trial.served, "1/s"), *cells, _told(trial)]


def _cell(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return show(milliseconds, "") if math.isfinite(milliseconds) else "failed"


def _told(trial: Trial) -> str:
    return f"{trial.status} {trial.limit}".strip()


def _knee(found: Capacity) -> Iterator[str]:
    if (knee := found.knee) is not None:
        yield from _wrapped(
            f"Knee: {show(knee.rate, '1/s')}, the rate tried with the highest power (served rate / "
            "median E2EL, Kleinrock)"
        )


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _json(question: _Question, found: Capacity) -> str:
    spec = question.spec
    head: dict[str, Any] = {
        "name": spec.name,
        "path": str(spec.source.path),
        "workload": question.workload.name,
        "precision": None if question.rates else question.precision,
    }
    told = redacted({**head, **found.to_json()})
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


class _StatusLine:
    """What happens, on stderr: one line that is written anew, and one that stays for each trial."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{text[:width]}")

    def tell(self, text: str) -> None:
        self.clear()
        self._write(f"{text}\n")

    def clear(self) -> None:
        if self._is_terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(redact(text))
        sys.stderr.flush()
