"""How far the latencies of a workload have moved between two runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmdeploy.baseline.document import Sent
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


def not_comparable(was: Sent, now: Sent) -> str:
    """Why the latencies of two runs of a workload can't be compared; empty when they can."""
    for run, sent in (("the baseline", was), ("this run", now)):
        if sent.interrupted:
            return f"{run} was interrupted: {sent.interrupted}"
        if sent.invalid:
            return f"{run} is INVALID: {'; '.join(sent.invalid)}"
        if sent.requests is None:
            return f"{run} has no requests in its report"
    if was.sent is None:
        return "the baseline does not say what was sent"
    other = now.sent or {}
    for key in sorted({*was.sent, *other}):
        before, after = was.sent.get(key, "none"), other.get(key, "none")
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
