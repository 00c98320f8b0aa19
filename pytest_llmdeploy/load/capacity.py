"""The capacity question: up to which rate does every limit of a workload hold?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmdeploy.load.trial import Trial
from pytest_llmdeploy.units import Duration, show

TryAt = Callable[[float], Trial]

PRECISION = 0.1
MOST_TRIALS = 20
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Capacity:
    """What is known of a capacity after some trials, in the order in which they were made.

    `stopped` says why no more were made before the precision was reached; empty when it was.
    """

    trials: Sequence[Trial]
    stopped: str = ""

    @property
    def failed(self) -> float | None:
        """The lowest rate at which a limit does not hold."""
        return min((trial.rate for trial in self.trials if trial.holds is False), default=None)

    @property
    def passed(self) -> float | None:
        """The highest rate, of those below `failed`, at which every limit holds."""
        below = math.inf if self.failed is None else self.failed
        held = (trial.rate for trial in self.trials if trial.holds)
        return max((rate for rate in held if rate < below), default=None)

    @property
    def knee(self) -> Trial | None:
        """Of several decided trials, that with the highest power: rate served over median E2EL.

        Beyond that rate, latency grows faster than what is served. L. Kleinrock, "Power and
        deterministic rules of thumb for probabilistic problems in computer communications",
        ICC 1979.
        """
        powerful = [trial for trial in self.trials if trial.holds is not None and trial.power > 0]
        return max(powerful, key=lambda trial: trial.power) if len(powerful) > 1 else None

    @property
    def was_interrupted(self) -> bool:
        return self.stopped == _INTERRUPTED

    def __str__(self) -> str:
        """The interval in words."""
        low = None if self.passed is None else show(self.passed, "1/s")
        high = None if self.failed is None else show(self.failed, "1/s")
        if low and high:
            return f"{low} hold, {high} do not"
        return f"at least {low}" if low else f"less than {high}" if high else "not known"

    def to_json(self) -> dict[str, Any]:
        knee = self.knee
        return {
            "capacity": {"holds_at": self.passed, "fails_at": self.failed},
            "knee": {"rate": knee.rate, "power": knee.power} if knee else None,
            "stopped": self.stopped or None,
            "trials": [trial.to_json() for trial in self.trials],
        }


def find_capacity(
    try_at: TryAt,
    start: float,
    *,
    precision: float = PRECISION,
    most_trials: int = MOST_TRIALS,
    most_seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Capacity:
    """The highest rate at which `try_at` says that all holds, by geometric bisection.

    From `start`, the rate is doubled until something does not hold, or halved until all does; then
    the interval is halved, until its ends are no further apart than the fraction `precision`. A
    trial that decides nothing moves neither end: there the search stops, as it does after an error
    of the server, after `most_trials`, and before a trial that would begin after `most_seconds`.
    """

    def undecided(trial: Trial) -> str:
        return "" if trial.holds is not None else f"{show(trial.rate, '1/s')} could not be decided"

    rates = _Bisection(start, precision)
    return _tried(try_at, rates, undecided, most_trials, Deadline(most_seconds, clock))


def sweep(
    try_at: TryAt,
    rates: Sequence[float],
    *,
    most_seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Capacity:
    """Trials at all of these rates, the lowest first; only an error of the server ends it early."""
    ordered = iter(sorted(set(rates)))

    def next_rate(_trials: Sequence[Trial]) -> float | None:
        return next(ordered, None)

    deadline = Deadline(most_seconds, clock)
    return _tried(try_at, next_rate, lambda _trial: "", len(rates), deadline)


class Deadline:
    """A moment after which no trial begins."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds

    def __str__(self) -> str:
        """Why nothing more is tried; empty while there is time."""
        return f"{Duration(self._seconds * 1000)} are over" if self._clock() >= self._end else ""


@dataclass(frozen=True)
class _Bisection:
    """The rate to try next; None when the interval is small enough."""

    start: float
    precision: float

    def __call__(self, trials: Sequence[Trial]) -> float | None:
        known = Capacity(trials)
        passed, failed = known.passed, known.failed
        if passed is None:
            return self.start if failed is None else failed / 2
        if failed is None:
            return passed * 2
        # As a person calculates it: 1.1 is within 10 % of 1.
        if failed <= passed * (1 + self.precision) * (1 + 1e-9):
            return None
        return math.sqrt(passed * failed)


def _tried(
    try_at: TryAt,
    next_rate: Callable[[Sequence[Trial]], float | None],
    reason_to_stop: Callable[[Trial], str],
    most_trials: int,
    deadline: Deadline,
) -> Capacity:
    trials: list[Trial] = []
    while (rate := next_rate(trials)) is not None:
        if len(trials) >= most_trials:
            return Capacity(trials, f"{most_trials} trials were made")
        if late := str(deadline):
            return Capacity(trials, late)
        try:
            trials.append(try_at(rate))
        except KeyboardInterrupt:
            # What was found until then is worth telling.
            return Capacity(trials, _INTERRUPTED)
        if stopped := trials[-1].problem or reason_to_stop(trials[-1]):
            return Capacity(trials, stopped)
    return Capacity(trials)
