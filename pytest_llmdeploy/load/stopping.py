"""When a workload has been run for long enough: once every requirement on it is decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from pytest_llmdeploy.load.claims import Before, Budget, claims
from pytest_llmdeploy.load.engines import Dealing
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.verdict import Corridor, Decision

# A closed loop has shown what it can do when every place in it was used so many times.
_ROUNDS = 2
# So many requests of an open loop are looked at for errors, where its time allows it.
_LEAST_CENSUS = 100


class StoppingRule:
    """Follows the requests of a workload by their number, which is the order of arrival.

    A request counts only after all before it: counting them as they finish would count the fast
    ones first. What was due before `start` does not count; nothing is decided on what was due
    before `least` alone. Both are seconds on the monotonic clock. With `until_failure`, the first
    requirement that fails ends it: then the others need not be decided. `dealing` is what the
    engines are dealt, when that is to be decided too; `earlier` are the latencies in an earlier
    run, where it must be no worse.
    """

    def __init__(
        self,
        workload: Workload,
        budget: Budget,
        start: float,
        *,
        until_failure: bool = False,
        dealing: Dealing | None = None,
        earlier: Before | None = None,
    ) -> None:
        self._until_failure = until_failure
        self._dealing = dealing
        self._workload = workload
        self._start = start
        self._least = start + workload.min_duration.seconds
        self._claims = claims(workload, budget, earlier or {})
        self._decisions: Sequence[Decision | Corridor] = ()
        self._early: list[Sample] = []
        self._waiting: dict[int, Sample] = {}
        self._next = 0
        self._seen = 0
        self.running_peak = 0.0
        self.keeps_up: bool | None = None

    def finished(self, number: int, sample: Sample) -> None:
        """The request `number` (from 0, by arrival) has ended."""
        self._waiting[number] = sample
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            if found.due >= self._start:
                self._seen += 1
                self._count(found)

    def _count(self, sample: Sample) -> None:
        if self._decisions or not self._claims:
            self._push(sample)
            return
        if sample.due >= self._least:
            self._decisions = [claim.begin(self._early) for claim in self._claims]
            for early in self._early:
                self._push(early)
            self._push(sample)
        self._early.append(sample)

    def _push(self, sample: Sample) -> None:
        for claim, decision in zip(self._claims, self._decisions, strict=True):
            observed = claim.observe(sample)
            if observed is not None:
                decision.push(observed)

    def is_decided(self, now: float) -> bool:
        """Whether nothing more needs to be sent at this moment of the monotonic clock."""
        answers = {answer for _, answer in self.answers()}
        decided = None not in answers or (self._until_failure and False in answers)
        return now >= self._least and decided

    def answers(self) -> Iterator[tuple[str, bool | None]]:
        """Every requirement that the run waits for, and its answer so far."""
        for claim, decision in zip_longest(self._claims, self._decisions):
            if decision and decision.is_over and decision.answer is None:
                continue  # nobody waits for an answer that never comes
            yield claim.name, decision.answer if decision else None
        require, seen = self._workload.require, self._seen
        if require.keeps_up:
            yield "keeps up", self.keeps_up
        if wanted := require.concurrent_sequences:
            yield "concurrency", True if self.running_peak >= wanted else None
        if self._dealing:
            yield from self._dealing.answers()
        if require.errors is not None or require.preemptions is not None or not self._claims:
            places = self._workload.concurrency
            rounds = _ROUNDS * places if places else _LEAST_CENSUS
            yield "census", True if seen >= rounds else None
