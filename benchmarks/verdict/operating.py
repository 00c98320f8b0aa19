"""Operating characteristics: how often a rule passes and fails, and after how many requests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.verdict.rules import Answer, Decide
from benchmarks.verdict.series import Series


@dataclass(frozen=True)
class Operating:
    """Shares of the runs that passed and that failed, and the mean number of requests."""

    passed: float
    failed: float
    requests: float


def operating(
    rules: Mapping[str, Decide], series: Series, *, runs: int, cap: int, seed: int = 0
) -> Mapping[str, Operating]:
    """Every rule on the same `runs` series of `cap` requests."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    answers: dict[str, list[Answer]] = {name: [] for name in rules}
    for _ in range(runs):
        values = series(chance, cap)
        for name, rule in rules.items():
            answers[name].append(rule(values))
    return {name: _summary(found) for name, found in answers.items()}


def _summary(answers: list[Answer]) -> Operating:
    runs = len(answers)
    return Operating(
        sum(answer is True for answer, _ in answers) / runs,
        sum(answer is False for answer, _ in answers) / runs,
        sum(n for _, n in answers) / runs,
    )
