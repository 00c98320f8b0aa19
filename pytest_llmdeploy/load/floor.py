"""What the client itself adds to a latency, measured against a server that adds nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_llmdeploy.load.crew import Crew
from pytest_llmdeploy.load.jobs import Job
from pytest_llmdeploy.load.null_server import null_server
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Workload

_SECONDS = 0.5
_TOKENS = 16
_GAP_SECONDS = 0.005
_LEAST_RATE = 100.0
# More than that, and the server in this process would be what is slow.
_MOST_EVENTS = 10_000.0
_LEAD_SECONDS = 0.05
_TIMES_FLOOR = 3.0


@dataclass(frozen=True, slots=True)
class Floor:
    """The client's own share (ms) in a time to first token, and in a gap between tokens: p99 of
    `requests` requests over a loopback connection.
    """

    ttft_ms: float
    gap_ms: float
    requests: int

    def resolution(self, metric: str) -> float:
        """The shortest limit (ms) on a metric that this client can judge."""
        own = self.ttft_ms if metric in {"ttft", "e2el"} else self.gap_ms
        return _TIMES_FLOOR * own


async def measure_floor(crew: Crew, workloads: Iterable[Workload]) -> Floor | None:
    """The floor at the event rate of the busiest open loop; None when nothing came back."""
    events = max((w.rate * w.mean_output for w in workloads if w.rate), default=0.0)
    rate = max(_LEAST_RATE, min(events, _MOST_EVENTS) / _TOKENS)
    samples: list[Sample] = []
    async with null_server(_GAP_SECONDS) as url:
        await crew.begin([_job(url, rate)])
        async for report in crew.reports():
            samples += [sample for _, sample in report.ended]
    return _floor(samples)


def _job(url: str, rate: float) -> Job:
    given = {
        "name": "floor",
        "input_tokens": _TOKENS,
        "output_tokens": _TOKENS,
        "rate": f"{rate}/s",
    }
    origin = time.perf_counter() + _LEAD_SECONDS
    return Job(
        endpoint=Endpoint(url),
        workload=Workload.model_validate(given),
        model="none",
        vocab=1000,
        nonce=0,
        schedule=[(number, origin + number / rate) for number in range(round(rate * _SECONDS))],
    )


def _floor(samples: Sequence[Sample]) -> Floor | None:
    samples = [sample for sample in samples if sample.is_ok]
    if not samples:
        return None
    ttft = [sample.ttft for sample in samples]
    gaps = [
        abs(later - earlier - _GAP_SECONDS) * 1000
        for sample in samples
        for (earlier, _), (later, _) in pairwise(sample.stamps)
    ]
    return Floor(_p99(ttft), _p99(gaps), len(samples))


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
