"""Whether engines share the load evenly: counts by engine, and an anytime-valid test on them.

"No engine has more than (1 + tolerance) / engines of the load" passes once it is refuted of every
engine that its share is that or more, and fails once it is refuted of one that its share is no
more. Both are mixtures of likelihood ratios, as those of percentiles are (`sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.units import show
from pytest_llmdeploy.verdict.sequential import Atom, atom, first, log_mixture

_PASS_PARTS = (0, 1 / 4, 1 / 2, 3 / 4)
_FAIL_PARTS = (1.25, 1.5, 2, 3, 4, 8, 16)
_BEYOND = (1 / 2, 15 / 16)
# A window has so many requests for each engine, and nothing passes, or fails, on fewer windows.
_EXPECTED = 5
_LEAST_WINDOWS, _LEAST_TO_FAIL = 8, 16
# An estimate from few windows is too small too often. Simulated in tests/verdict/test_balance.py.
_DOUBT = 4
_STEPS = 30
_MOST_TOLD = 8
_ABSENT = "start the engine, or correct parallel.data or attach.engines"


@dataclass(frozen=True)
class BalanceRule:
    """Decides "the busiest of so many `engines` has at most (1 + tolerance) times the mean".

    `alpha` and `beta` are the probabilities of a wrong PASS and a wrong FAIL.
    """

    engines: int
    tolerance: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < self.engines - 1:
            raise ValueError(f"{self}: the tolerance is between 0 and engines - 1")

    @property
    def least(self) -> int:
        """The number of requests before which nothing is decided."""
        return _LEAST_WINDOWS * _EXPECTED * self.engines

    def decide(self, requests: float, most: float, effect: float = 1.0) -> bool | None:
        """True: pass. False: fail. None: not enough evidence, with `most` on the busiest engine."""
        if self.log_evidence_for(requests / effect, most / effect) >= -math.log(self.alpha):
            return True
        against = self.log_evidence_against(requests / effect, most / effect)
        # Any of the engines may fail it, so that they share beta.
        return False if against >= math.log(self.engines / self.beta) else None

    def log_evidence_for(self, requests: float, count: float) -> float:
        """Against "this engine's share is the limit or more"."""
        return log_mixture(self._pass_atoms, requests, count)

    def log_evidence_against(self, requests: float, count: float) -> float:
        """Against "this engine's share is the limit or less"."""
        return log_mixture(self._fail_atoms, requests, count)

    def requests_to_pass(self, effect: float = 1.0) -> int:
        """How many requests it takes to pass when every engine gets as many."""

        def enough(requests: int) -> bool:
            return self.decide(requests, requests / self.engines, effect) is True

        high = self.least
        while not enough(high):
            high *= 2
        return first(self.least, high, enough)

    @cached_property
    def _pass_atoms(self) -> Sequence[Atom]:
        return self._atoms([self._share(part) for part in _PASS_PARTS])

    @cached_property
    def _fail_atoms(self) -> Sequence[Atom]:
        limit = self._share(1)
        far = [limit + part * (1 - limit) for part in _BEYOND]
        return self._atoms([s for part in _FAIL_PARTS if (s := self._share(part)) < far[0]] + far)

    def _atoms(self, shares: Sequence[float]) -> Sequence[Atom]:
        return [atom(1 / len(shares), share, self._share(1)) for share in shares]

    def _share(self, part: float) -> float:
        """What an engine has that is over the mean by such a part of the tolerance."""
        return (1 + self.tolerance * part) / self.engines


@dataclass
class BalanceDecision:
    """The rule's answer (None: not yet) as the counts of one window after the other come in.

    The rule is asked whenever there is a twentieth more than at the last look; `look` asks it at
    the end of the data. The first answer stands, and nothing is counted after it.
    """

    rule: BalanceRule
    answer: bool | None = field(default=None, init=False)
    counts: list[float] = field(init=False)
    windows: list[list[float]] = field(default_factory=list, init=False, repr=False)
    _next_look: float = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0.0] * self.rule.engines
        self._open = [0.0] * self.rule.engines
        self._next_look = self.rule.least

    @property
    def n(self) -> float:
        return math.fsum(self.counts)

    def push(self, counts: Sequence[float]) -> None:
        """What each engine was dealt since the last reading, in requests."""
        if self.answer is not None:
            return
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]
        self._open = [old + new for old, new in zip(self._open, counts, strict=True)]
        if math.fsum(self._open) >= _EXPECTED * self.rule.engines:
            self.windows.append(self._open)
            self._open = [0.0] * self.rule.engines
        if self.n >= self._next_look:
            self._next_look = self.n * 1.05
            self.look()

    def look(self) -> bool | None:
        """The answer, asked for with what there is."""
        n, most = self.n, max(self.counts)
        # Dispersion takes evidence away: where there is none without it, it need not be known.
        if self.answer is None and n and self._has_windows_for(self.rule.decide(n, most)):
            answer = self.rule.decide(n, most, self.dispersion)
            self.answer = answer if self._has_windows_for(answer) else None
        return self.answer

    def _has_windows_for(self, answer: bool | None) -> bool:
        """Early on, a few long bursts to one engine look like an engine that gets everything."""
        least = _LEAST_WINDOWS if answer else _LEAST_TO_FAIL
        return answer is not None and len(self.windows) >= least

    @property
    def dispersion(self) -> float:
        return dispersion(self.windows)


def dispersion(windows: Sequence[Sequence[float]]) -> float:
    """How many times as much the counts vary as those of independent requests would, at least 1.

    Pearson's χ² over its degrees of freedom, the largest over windows of doubling lengths: what is
    dealt in bursts shows in windows that are longer than they. An estimate, no bound.
    """
    found = 1.0
    while len(windows) >= _LEAST_WINDOWS:
        found = max(found, _doubted(_pearson(windows), len(windows)))
        pairs = zip(windows[::2], windows[1::2], strict=False)
        windows = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
    return found


def _doubted(estimate: float, windows: int) -> float:
    return estimate * (1 + _DOUBT * max(0.0, estimate - 1) / windows)


def _pearson(windows: Sequence[Sequence[float]]) -> float:
    totals = [math.fsum(column) for column in zip(*windows, strict=True)]
    whole = math.fsum(totals)
    shares = [(index, total / whole) for index, total in enumerate(totals) if total]
    freedom = (len(windows) - 1) * (len(shares) - 1)
    if not freedom:
        return 0.0
    squares = (
        (window[index] - (size := math.fsum(window)) * share) ** 2 / (size * share)
        for window in windows
        for index, share in shares
    )
    return math.fsum(squares) / freedom


@dataclass(frozen=True)
class Shares:
    """What each engine was dealt: `counts` of `unit`, and `windows` of them in requests (or what
    tells as much as a request) between one reading and the next.

    `beta` is the probability of a wrong FAIL, `missing` names engines that should be there and are
    not, `problem` says why the counts can't be trusted.
    """

    counts: Mapping[str, float]
    windows: Sequence[Mapping[str, float]]
    unit: str
    alpha: float
    beta: float
    source: str
    missing: Sequence[str] = ()
    problem: str = ""

    def within(self, tolerance: float) -> Judgement:
        """The busiest engine has at most (1 + tolerance) times the mean: PASS or FAIL once the test
        decides, else INCONCLUSIVE.
        """
        requirement = f"≤ {show(tolerance, 'fraction')} over the mean of the engines"
        found = {"source": self.source, "counts": dict(self.counts), "missing": list(self.missing)}
        if spoilt := self._spoilt(tolerance):
            status, result = spoilt
            return Judgement(
                status=status,
                requirement=requirement,
                result=result,
                limit=tolerance,
                unit="fraction",
                evidence=found,
                hint=_ABSENT if status is Status.FAIL else "",
            )
        decision = self.decide(tolerance)
        bound = self._bound(decision)
        spread = Spread(list(self.counts.values()))
        return judged(
            decision.answer,
            requirement,
            f"{self._told(decision, bound, spread)} ({self._particulars(spread)})",
            measured=spread.excess,
            bound=bound,
            limit=tolerance,
            unit="fraction",
            margin=(tolerance - spread.excess) / tolerance,
            evidence={**found, **self._evidence(decision, spread)},
            hint=self._what_it_takes(decision) if decision.answer is None else "",
        )

    def decide(self, tolerance: float) -> BalanceDecision:
        """The test's first answer, going through the windows in order."""
        rule = BalanceRule(len(self.counts), tolerance, self.alpha, self.beta)
        decision = BalanceDecision(rule)
        for window in self.windows:
            decision.push([window[name] for name in self.counts])
        decision.look()
        return decision

    @property
    def busiest(self) -> str:
        return max(self.counts, key=self.counts.__getitem__)

    def _spoilt(self, tolerance: float) -> tuple[Status, str] | None:
        engines = len(self.counts)
        if self.problem:
            return Status.ERROR, self.problem
        if self.missing:
            there = f"{engines} of {engines + len(self.missing)} engines are there"
            return Status.FAIL, f"{there}, not {self.missing[0]}"
        if not any(self.counts.values()):
            return Status.ERROR, f"no {self.unit} were counted"
        if engines < 2:  # noqa: PLR2004 - it takes two to share
            return Status.ERROR, "one engine has nothing to share"
        if tolerance >= engines - 1:
            return Status.ERROR, f"of {engines} engines, none can be further over the mean"
        return None

    def _told(self, decision: BalanceDecision, bound: float | None, spread: Spread) -> str:
        sign = {True: "≤", False: "≥", None: "about"}[decision.answer]
        return f"{sign} {show(spread.excess if bound is None else bound, 'fraction')}"

    def _particulars(self, spread: Spread) -> str:
        counts = [f"{count:,.0f}" for count in self.counts.values()]
        if len(counts) > _MOST_TOLD:
            counts = [f"{min(self.counts.values()):,.0f} to {max(self.counts.values()):,.0f}"]
        return "; ".join(
            [f"{self.busiest} the busiest", f"{', '.join(counts)} {self.unit}", str(spread)]
        )

    def _evidence(self, decision: BalanceDecision, spread: Spread) -> dict[str, Any]:
        effect = decision.dispersion
        return {
            "busiest": self.busiest,
            **spread.to_json(),
            "n": decision.n,
            "decided_on": dict(zip(self.counts, decision.counts, strict=True)),
            "alpha": self.alpha,
            "beta": self.beta,
            "windows": len(decision.windows),
            "dispersion": effect,
            "effective_requests": decision.n / effect,
            "test": "mixture e-process",
        }

    def _bound(self, decision: BalanceDecision) -> float | None:
        """The smallest tolerance that the counts would have passed, or when they failed, the
        largest that they would have failed.
        """
        if decision.answer is None:
            return None
        rule, n, most = decision.rule, decision.n, max(decision.counts)
        effect = decision.dispersion
        yes, no = rule.tolerance, (0.0 if decision.answer else rule.engines - 1.0)
        for _ in range(_STEPS):
            middle = (yes + no) / 2
            answer = replace(rule, tolerance=middle).decide(n, most, effect)
            yes, no = (middle, no) if answer is decision.answer else (yes, middle)
        return yes

    def _what_it_takes(self, decision: BalanceDecision) -> str:
        effect = decision.dispersion
        needed = decision.rule.requests_to_pass(effect)
        bursts = f" (they come in bursts, worth {decision.n / effect:,.0f})" if effect > 1 else ""
        worth = "" if self.unit == "requests" else f"{self.unit} worth "
        return (
            f"{worth}{decision.n:,.0f} requests{bursts} decide nothing; shared evenly it takes "
            f"about {needed:,}: raise max_duration or the rate"
        )


@dataclass(frozen=True)
class Spread:
    """The usual measures of how uneven some loads are."""

    loads: Sequence[float]

    @property
    def mean(self) -> float:
        return math.fsum(self.loads) / len(self.loads)

    @property
    def excess(self) -> float:
        """S = max / mean - 1: how long the others wait for the busiest, at worst."""
        return max(self.loads) / self.mean - 1

    @property
    def balancedness(self) -> float:
        """B = mean / max."""
        return self.mean / max(self.loads)

    @property
    def range(self) -> float:
        """R = (max - min) / mean."""
        return (max(self.loads) - min(self.loads)) / self.mean

    @property
    def variation(self) -> float:
        """CV = standard deviation / mean."""
        squares = math.fsum((load - self.mean) ** 2 for load in self.loads)
        return math.sqrt(squares / len(self.loads)) / self.mean

    @property
    def deviation(self) -> float:
        """D = max |load - mean| / mean, to either side."""
        return max(abs(load - self.mean) for load in self.loads) / self.mean

    def to_json(self) -> dict[str, float]:
        return {
            "straggler_excess": self.excess,
            "balancedness": self.balancedness,
            "range": self.range,
            "variation": self.variation,
            "deviation": self.deviation,
        }

    def __str__(self) -> str:
        percents = (("S", self.excess), ("R", self.range), ("CV", self.variation))
        told = [f"{name} {show(round(value, 4), 'fraction')}" for name, value in percents]
        told += [f"D {show(round(self.deviation, 4), 'fraction')}", f"B {self.balancedness:.3g}"]
        return ", ".join(told)
