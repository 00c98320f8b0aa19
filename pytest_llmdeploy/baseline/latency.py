"""How far the latencies of a workload have moved between two runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmdeploy.baseline.document import Earlier, Sent
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Percentile
from pytest_llmdeploy.verdict.shift import Shift, shift

METRICS = ("ttft", "tpot", "e2el")
PERCENTILES = tuple(map(Percentile, ("p50", "p90", "p99")))
_OK = "ok"


@dataclass(frozen=True, slots=True)
class Moved:
    """A percentile of a latency in two runs."""

    metric: str
    percentile: Percentile
    shift: Shift


class NotComparableError(Exception):
    """The latencies of two runs can't be compared; the text says why."""


def latencies(run: Earlier, workload: Workload) -> Mapping[str, Sequence[float]]:
    """The latencies of a workload in an earlier run by metric, in order of arrival: ms, +inf where
    a request failed.

    Raises:
        NotComparableError: when there are none, or none of this workload.
    """
    sent = _sent(run, workload.name)
    if fault := _useless("the baseline", sent) or _other(sent, workload.sent):
        raise NotComparableError(fault)
    return {metric: _latencies(sent, metric) for metric in METRICS}


def both_sent(was: Earlier, now: Earlier, workload: str) -> tuple[Sent, Sent]:
    """What was sent in two runs.

    Raises:
        NotComparableError: when their latencies can't be compared.
    """
    before, after = _sent(was, workload), _sent(now, workload)
    fault = _useless("the baseline", before) or _useless("this run", after)
    if fault := fault or _other(before, after.sent or {}):
        raise NotComparableError(fault)
    return before, after


def _sent(run: Earlier, workload: str) -> Sent:
    try:
        return (run.traffic or {})[workload]
    except KeyError:
        raise NotComparableError("the baseline has no such workload") from None


def _useless(run: str, sent: Sent) -> str:
    """Why nothing is compared with what was sent in a run; empty when it can be."""
    if sent.interrupted:
        return f"{run} was interrupted: {sent.interrupted}"
    if sent.invalid:
        return f"{run} is INVALID: {'; '.join(sent.invalid)}"
    return "" if sent.requests else f"{run} has no requests in its report"


def _other(was: Sent, now: Mapping[str, str]) -> str:
    """In what another workload was sent; empty when it was the same."""
    if was.sent is None:
        return "the baseline does not say what was sent"
    for key in sorted({*was.sent, *now}):
        before, after = was.sent.get(key, "none"), now.get(key, "none")
        if before != after:
            return f"the baseline was another workload: {key} was {before}, is {after}"
    return ""


def moved(was: Sent, now: Sent, confidence: float) -> Iterator[Moved]:
    """Every percentile for which both runs have enough requests, each at this confidence."""
    for metric in METRICS:
        before, after = _latencies(was, metric), _latencies(now, metric)
        for percentile in PERCENTILES:
            if found := shift(before, after, percentile.fraction, confidence):
                yield Moved(metric, percentile, found)


def _latencies(sent: Sent, metric: str) -> list[float]:
    """In ms, +inf where a request failed; an answer of one token has no TPOT."""
    if sent.requests is None:
        return []
    values: list[float | None] = getattr(sent.requests, metric)
    pairs = zip(sent.requests.outcome, values, strict=False)
    return [
        math.inf if value is None else value
        for outcome, value in pairs
        if value is not None or outcome != _OK
    ]
