"""What each engine behind the server was dealt, by the counters of all replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmdeploy.spec.require import BalanceRequire
from pytest_llmdeploy.verdict import BalanceDecision, BalanceRule, Shares

if TYPE_CHECKING:
    from pytest_llmdeploy.load.claims import Budget
    from pytest_llmdeploy.load.counters import Counters
    from pytest_llmdeploy.load.samples import Sample

REQUESTS = "vllm:request_success_total"
TOKENS = "vllm:generation_tokens_total"
COUNTED = {"requests": REQUESTS, "tokens": TOKENS}


@dataclass(frozen=True, slots=True)
class Dealt:
    """What every engine counted between two readings, by the name of the counter and the engine;
    `worth` is how much of that counter tells as much as one independent request.
    """

    counts: Mapping[str, Mapping[str, float]]
    worth: Mapping[str, float]

    def requests(self, counter: str) -> Mapping[str, float]:
        """By engine, in what tells as much as a request."""
        return {name: count / self.worth[counter] for name, count in self.counts[counter].items()}


@dataclass(frozen=True)
class Engines:
    """All that was dealt while workloads were measured; `missing` names engines that the spec has
    and nobody counts for, `problem` says why the counts can't be trusted.
    """

    dealt: Sequence[Dealt] = ()
    alpha: float = 0.05
    beta: float = 0.05
    missing: Sequence[str] = ()
    problem: str = "error: nothing was sent"

    def shares(self, of: str) -> Shares:
        """The shares of the engines in one of `COUNTED`."""
        counter, problem = COUNTED[of], self.problem
        if not problem and any(counter not in dealt.counts for dealt in self.dealt):
            problem = f"unsupported: /metrics has no {counter}"
        dealt = () if problem else self.dealt
        totals: dict[str, float] = {}
        for part in dealt:
            for name, count in part.counts[counter].items():
                totals[name] = totals.get(name, 0.0) + count
        return Shares(
            counts=totals,
            windows=[part.requests(counter) for part in dealt],
            unit=of,
            alpha=self.alpha,
            beta=self.beta,
            source=counter,
            missing=self.missing,
            problem=problem,
        )


@dataclass
class Dealing:
    """Follows what engines are dealt through all workloads of a run, until it is decided."""

    required: BalanceRequire
    copies: int
    replicas: int
    budget: Budget
    dealt: list[Dealt] = field(default_factory=list, init=False)
    problem: str = field(default="", init=False)
    _last: Counters | None = field(default=None, init=False)
    _decisions: dict[str, BalanceDecision] = field(default_factory=dict, init=False)
    _tokens: float = field(default=0.0, init=False)
    _squares: float = field(default=0.0, init=False)

    def begin(self, read: Counters | None) -> None:
        """What is counted from this reading on belongs to a measurement."""
        self._last = read
        if read is None:
            self.problem = self.problem or "error: /metrics could not be read"

    def answered(self, sample: Sample) -> None:
        tokens = sum(count for _, count in sample.stamps)
        self._tokens += tokens
        self._squares += tokens * tokens

    def take(self, read: Counters) -> None:
        """The next reading of the counters."""
        before = self._last
        # Until something is answered, nobody knows what a token is worth.
        if before is None or self.problem or not self._tokens:
            return
        self._last = read
        if changed := next(_changed(before.engines, read.engines), ""):
            self.problem = f"lost: the counters of {changed} began anew, or are not those of before"
            return
        counts = {
            counter: {name: now[name] - before.engines[counter][name] for name in sorted(now)}
            for counter, now in read.engines.items()
        }
        # A sum of lengths varies as one request for each E[length²] / E[length].
        worth = {REQUESTS: 1.0, TOKENS: self._squares / self._tokens}
        self.dealt.append(Dealt(counts, worth))
        for of, tolerance in self._required():
            if counted := counts.get(COUNTED[of]):
                self._push(of, tolerance, self.dealt[-1].requests(COUNTED[of]), len(counted))

    def answers(self) -> Iterator[tuple[str, bool | None]]:
        """Every requirement on the balance, and its answer so far."""
        for of, _ in self._required():
            decision = self._decisions.get(of)
            # What can't be decided, or has failed already, need not be waited for.
            hopeless = self.problem or self.missing or (self.dealt and decision is None)
            answer = decision.answer if decision else None
            yield f"{of} balance", False if hopeless else answer

    @property
    def missing(self) -> Sequence[str]:
        """The engines that the spec has and the server, or one of its replicas, has not."""
        seen = {
            name
            for counted in (self._last.engines if self._last else {}).values()
            for name in counted
        }
        if not seen:
            return ()
        labels = [str(copy) for copy in range(self.copies)]
        # The copies of one deployment may each have a server of their own, and tell who they are.
        if sorted(name.rpartition(" ")[2] for name in seen) == sorted(labels):
            return ()
        places = [None] if self.replicas == 1 else range(self.replicas)
        named = (engine_name(label, replica) for replica in places for label in labels)
        return [name for name in named if name not in seen]

    @property
    def engines(self) -> Engines:
        """All that was dealt so far."""
        alpha, beta = self.budget.alpha, self.budget.beta
        return Engines(list(self.dealt), alpha, beta, self.missing, self.problem)

    def _required(self) -> Iterator[tuple[str, float]]:
        for of in COUNTED:
            tolerance = getattr(self.required, of)
            if tolerance is not None:
                yield of, tolerance

    def _push(self, of: str, tolerance: float, counts: Mapping[str, float], engines: int) -> None:
        if not tolerance < engines - 1:
            return
        if of not in self._decisions:
            rule = BalanceRule(engines, tolerance, self.budget.alpha, self.budget.beta)
            self._decisions[of] = BalanceDecision(rule)
        self._decisions[of].push(list(counts.values()))


def _changed(
    before: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """The engines that counted, and count less now, or are there in one of two readings only."""
    for counter in before.keys() | now.keys():
        then, later = before.get(counter, {}), now.get(counter, {})
        yield from sorted(then.keys() ^ later.keys())
        yield from (name for name, count in then.items() if later.get(name, count) < count)


def engine_name(label: str, replica: int | None = None) -> str:
    """An engine by its label, and where there are several replicas, by the number of its own."""
    place = "" if replica is None else f"replica {replica} "
    return f"{place}engine {label}"
