"""When a workload has been run for long enough: once every requirement on it is decided."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.verdict import Decision, SequentialTest

# A closed loop has shown what it can do when every place in it was used so many times.
_ROUNDS = 2


class StoppingRule:
    """Follows the measured requests of a workload in order of arrival.

    Requests count in the order in which they arrived, and one only after all before it: counting
    them as they finish would count the fast ones first.
    """

    def __init__(self, workload: Workload, confidence: float) -> None:
        alpha = round(1 - confidence, 9)
        self._workload = workload
        self._latencies = [
            (
                f"{metric} {percentile}",
                metric,
                Decision(SequentialTest.of_percentile(percentile.fraction, alpha, alpha), limit),
            )
            for metric, limits in workload.require.latency.items()
            for percentile, limit in limits.items()
        ]
        self._waiting: dict[int, Sample] = {}
        self._next = 0
        self.running_peak = 0.0
        self.keeps_up: bool | None = None

    def finished(self, index: int, sample: Sample) -> None:
        """The measured request number `index` (from 0, by arrival) has ended."""
        self._waiting[index] = sample
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            for _, metric, decision in self._latencies:
                value = getattr(found, metric)
                if value is not None:
                    decision.push(value)

    @property
    def is_decided(self) -> bool:
        return all(answer is not None for _, answer in self.answers())

    def answers(self) -> Iterator[tuple[str, bool | None]]:
        """Every requirement that the run waits for, and its answer so far."""
        for name, _, decision in self._latencies:
            yield name, decision.answer
        require, seen = self._workload.require, self._next
        if require.keeps_up:
            yield "keeps up", self.keeps_up
        if wanted := require.concurrent_sequences:
            yield "concurrency", True if self.running_peak >= wanted else None
        if require.errors is not None or require.preemptions is not None or not self._latencies:
            rounds = _ROUNDS * (self._workload.concurrency or 1)
            yield "census", True if seen >= rounds else None
