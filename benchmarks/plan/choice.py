"""Does the predictor choose the strategy that measured best?

A case is a series, its lengths and a limit on TPOT. Among the measured strategies (tensor-parallel
sizes) and concurrencies, the best has the most output tokens per second and GPU within the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.plan.deployments import Deployment

LIMITS_MS = (12, 15, 20, 25, 30, 40, 50)
TOLERANCE = 1.05  # of the limit, before a choice counts as one that breaks it
Latency = tuple[float, float]
Said = Callable[[Deployment], Latency | None]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen in one case; `regret` is the share of throughput that was given away."""

    same: bool
    regret: float
    broken: bool


@dataclass(frozen=True, slots=True)
class Choices:
    """All cases of some series."""

    cases: tuple[Choice, ...]

    @property
    def same(self) -> float:
        return sum(case.same for case in self.cases) / len(self.cases)

    @property
    def broken(self) -> float:
        return sum(case.broken for case in self.cases) / len(self.cases)

    @property
    def regrets(self) -> tuple[float, ...]:
        return tuple(case.regret for case in self.cases if not case.broken)


def choices(rows: Sequence[Deployment], said: Said) -> Choices:
    """The predictor's choices in every case that has an answer; it `said` TTFT and TPOT in ms.

    A row for which it said nothing is not chosen. Where it holds nothing for possible, it takes
    the strategy that comes nearest to the limit.
    """
    return Choices(tuple(_choices(rows, said)))


def _choices(rows: Sequence[Deployment], said: Said) -> Iterator[Choice]:
    for _, group in groupby(sorted(rows, key=_case), key=_case):
        candidates = [(row, latency) for row in group if (latency := said(row))]
        everything = [(row, (row.ttft_ms, row.tpot_ms)) for row, _ in candidates]
        for limit in LIMITS_MS:
            best = _best(everything, limit)
            if best is not None and best.tpot_ms <= limit:
                yield _judged(_best(candidates, limit) or best, best, limit)


def _case(row: Deployment) -> tuple[str, str, int, int]:
    return row.system, row.protocol.precision, row.input_tokens, row.output_tokens


def _best(candidates: Sequence[tuple[Deployment, Latency]], limit: float) -> Deployment | None:
    within = [(row, latency) for row, latency in candidates if latency[1] <= limit]
    if within:
        return max(within, key=lambda pair: _throughput(*pair))[0]
    return min(candidates, key=lambda pair: pair[1][1])[0] if candidates else None


def _judged(chosen: Deployment, best: Deployment, limit: float) -> Choice:
    most = _throughput(best, (best.ttft_ms, best.tpot_ms))
    got = _throughput(chosen, (chosen.ttft_ms, chosen.tpot_ms))
    broken = chosen.tpot_ms > limit * TOLERANCE
    return Choice(chosen.tensor == best.tensor, max(0.0, 1 - got / most), broken)


def _throughput(row: Deployment, latency: Latency) -> float:
    """Output tokens per ms and GPU, by Little's law."""
    ttft, tpot = latency
    return row.concurrency * row.output_tokens / (ttft + row.output_tokens * tpot) / row.tensor
