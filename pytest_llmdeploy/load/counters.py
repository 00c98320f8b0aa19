"""What the server counts of itself, before the traffic and after it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llmdeploy.load.engines import COUNTED, engine_name
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.metrics import quick_samples

RUNNING = "vllm:num_requests_running"
PREEMPTIONS = "vllm:num_preemptions_total"
PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
STARTED = "process_start_time_seconds"
TTFT = "vllm:time_to_first_token_seconds"
QUEUE = "vllm:request_queue_time_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
_HISTOGRAMS = (TTFT, QUEUE, PREFILL)
_READ = (
    *(RUNNING, PREEMPTIONS, PREFIX_QUERIES, PREFIX_HITS, PROMPT_TOKENS, STARTED),
    *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("sum", "count")),
    *COUNTED.values(),
)


@dataclass(frozen=True, slots=True)
class Counters:
    """The totals of what a server reports, over its replicas and engines; what it does not report
    is absent. `engines` is what each of them was dealt, by counter and by name.

    `at` is the wall-clock time of the reading.
    """

    totals: Mapping[str, float]
    at: float
    engines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, pages: Sequence[bytes | None]) -> Counters | None:
        """What the /metrics of every replica says; None where one says nothing that can be
        understood.
        """
        totals: dict[str, float] = {}
        engines: dict[str, dict[str, float]] = {}
        for number, page in enumerate(pages):
            if page is None:
                return None
            replica = number if len(pages) > 1 else None
            try:
                for name, label, value in quick_samples(page, _READ):
                    totals[name] = totals.get(name, 0.0) + value
                    if name in COUNTED.values():
                        counted = engines.setdefault(name, {})
                        engine = engine_name(label, replica)
                        counted[engine] = counted.get(engine, 0.0) + value
            except ValueError:
                return None
        return cls(totals, time.time(), engines)


def metrics_page(endpoint: Endpoint) -> bytes | None:
    """What /metrics says now; None where it does not answer."""
    try:
        return endpoint.metrics_page()
    except EndpointError:
        return None


@dataclass(frozen=True, slots=True)
class Counted:
    """What a server counted between two readings."""

    before: Counters
    after: Counters

    def more(self, name: str) -> float | None:
        """By how much a counter rose; None where it is not reported."""
        then, now = self.before.totals.get(name), self.after.totals.get(name)
        return None if then is None or now is None else now - then

    def mean(self, histogram: str) -> float | None:
        """The mean of what a histogram in seconds saw, in ms."""
        total, count = self.more(f"{histogram}_sum"), self.more(f"{histogram}_count")
        return total / count * 1000 if total is not None and count else None

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that the prefix cache held."""
        hits, queries = self.more(PREFIX_HITS), self.more(PREFIX_QUERIES)
        return hits / queries if hits is not None and queries else None

    @property
    def restart(self) -> str:
        """What shows that the server was started anew in between; empty where nothing does."""
        return next(self._restarts(), "")

    def _restarts(self) -> Iterator[str]:
        if self.more(STARTED):
            yield f"{STARTED} changed"
        for name in (PROMPT_TOKENS, PREFIX_QUERIES, PREEMPTIONS):
            if (self.more(name) or 0) < 0:
                yield f"{name} fell"
