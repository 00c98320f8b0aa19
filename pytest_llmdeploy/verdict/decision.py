"""A percentile on its way through the requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from pytest_llmdeploy.verdict.dependence import design_effect
from pytest_llmdeploy.verdict.observation import Observation, mean, over, weighted
from pytest_llmdeploy.verdict.rule import Rule


@dataclass
class Decision:
    """After `n` requests, `over` of them over the limit, the rule's answer (None: not yet).

    Requests are pushed in the order of arrival. The rule is asked at 100 requests and then at every
    twentieth of what there is; `look` asks it at the end of the data. The first answer stands, and
    nothing is counted after it.
    """

    rule: Rule
    limit: float
    n: int = field(default=0, init=False)
    over: float = field(default=0, init=False)
    answer: bool | None = field(default=None, init=False)
    _series: list[float] = field(default_factory=list, init=False, repr=False)
    _next_look: int = field(default=0, init=False, repr=False)
    _estimated: tuple[int, float] = field(default=(0, 1.0), init=False, repr=False)

    def __post_init__(self) -> None:
        self._next_look = self.rule.next_look(0)

    @classmethod
    def on(cls, rule: Rule, limit: float, observations: Iterable[Observation]) -> Self:
        """The first answer, going through all that was observed, and looking at its end."""
        decision = cls(rule, limit)
        for observation in observations:
            decision.push(observation)
            if decision.answer is not None:
                break
        decision.look()
        return decision

    def push(self, observation: Observation) -> None:
        """The next request; what is not a number is over the limit."""
        if self.answer is not None:
            return
        parts = weighted(observation)
        self.n += 1
        self.over += over(parts, self.limit)
        self._series.append(mean(parts))
        if self.n >= self._next_look:
            self._next_look = self.rule.next_look(self.n)
            self.look()

    def look(self) -> bool | None:
        """The answer, asked for with the requests so far."""
        # Dependence takes evidence away: where there is none without it, it need not be known.
        if self.answer is None and self.rule.decide(self.n, self.over, 1.0) is not None:
            self.answer = self.rule.decide(self.n, self.over, self.estimated_effect)
        return self.answer

    @property
    def is_over(self) -> bool:
        """Whether more requests change nothing."""
        return self.answer is not None

    @property
    def design_effect(self) -> float:
        """What the requests are divided by: as estimated from them, or as the bursts declare."""
        return self.rule.effect(self.n, self.estimated_effect)

    @property
    def estimated_effect(self) -> float:
        """As the series so far shows it."""
        if self._estimated[0] != self.n:
            self._estimated = (self.n, design_effect(self._series, self.rule.levels))
        return self._estimated[1]
