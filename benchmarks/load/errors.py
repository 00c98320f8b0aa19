"""How far a client's figures are from what the server did, in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import fmean, median

from benchmarks.load.server import Served


@dataclass(frozen=True)
class Measured:
    """What a client says of the requests that it finished, in seconds: the gaps between tokens, or
    only their mean of each request.
    """

    ttfts: Sequence[float]
    gaps: Sequence[float]
    is_mean_gap: bool = False


@dataclass(frozen=True)
class Errors:
    """Errors at the median and at the 99th percentile."""

    ttft: tuple[float, float]
    gap: tuple[float, float]


def median_of(runs: Sequence[Errors]) -> Errors:
    """Each figure's own median over some runs."""
    figures = [
        median(values) for values in zip(*((*run.ttft, *run.gap) for run in runs), strict=True)
    ]
    return Errors((figures[0], figures[1]), (figures[2], figures[3]))


def percentile(values: Sequence[float], p: float) -> float:
    """Nearest rank."""
    return sorted(values)[math.ceil(len(values) * p) - 1]


def of_distributions(measured: Measured, log: Sequence[Served]) -> Errors:
    """The client's percentile minus the server's: all that can be said where a client does not tell
    which request was which.
    """
    ttfts = [served.ttft for served in log]
    if measured.is_mean_gap:
        gaps = [fmean(served.gaps) for served in log]
    else:
        gaps = list(chain.from_iterable(served.gaps for served in log))
    return Errors(_differences(measured.ttfts, ttfts), _differences(measured.gaps, gaps))


def _differences(client: Sequence[float], server: Sequence[float]) -> tuple[float, float]:
    half, most = ((percentile(client, p) - percentile(server, p)) * 1000 for p in (0.5, 0.99))
    return half, most


def of_each(requests: Mapping[int, tuple[float, Sequence[float]]], log: Sequence[Served]) -> Errors:
    """Percentiles of the absolute error of every single TTFT and gap; `requests` are the due time
    and the stamps by the number of the request. A TTFT counts from when the request was due: its
    error includes being sent late.
    """
    ttfts, gaps = [], []
    for served in log:
        if served.user in requests:
            due, stamps = requests[served.user]
            ttfts.append(abs(stamps[0] - due - served.ttft))
            pairs = zip(pairwise(stamps), served.gaps, strict=True)
            gaps += [abs(after - before - gap) for (before, after), gap in pairs]
    return Errors(_percentiles(ttfts), _percentiles(gaps))


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    return percentile(values, 0.5) * 1000, percentile(values, 0.99) * 1000
