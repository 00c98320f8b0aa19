"""How far a predictor is from what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.plan.deployments import QWEN_BF16, Deployment, deployments, llama
from pytest_llmdeploy.plan.latency import Analytical, Prediction, Version

BAND = 0.2
SERIES = (
    ("Qwen3-32B bf16 H100 (fitted)", "h100_sxm", QWEN_BF16),
    ("Llama-3.1-70B fp8 H100", "h100_sxm", llama("h100_sxm", "fp8")),
    ("Llama-3.1-70B fp8 H200", "h200_sxm", llama("h200_sxm", "fp8")),
    ("Llama-3.1-70B fp8 B200", "b200_sxm", llama("b200_sxm", "fp8")),
    ("Llama-3.1-70B fp4 B200", "b200_sxm", llama("b200_sxm", "fp4")),
)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors, one for each row that the predictor answered."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean absolute percentage error, as a fraction."""
        return sum(abs(value) for value in self.values) / len(self.values)

    @property
    def bias(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def p90(self) -> float:
        return sorted(abs(value) for value in self.values)[math.ceil(0.9 * len(self.values)) - 1]

    @property
    def covered(self) -> float:
        """The share of rows within the band that a prediction outside of the fitted range has."""
        return sum(abs(value) <= BAND for value in self.values) / len(self.values)


def series(index: int) -> tuple[Deployment, ...]:
    """The rows of one of SERIES."""
    _, system, protocol = SERIES[index]
    return deployments(system, protocol)


def predicted(row: Deployment, version: Version | None = None) -> Prediction:
    """What we say, for the version of vLLM that was measured unless told another."""
    predictor = replace(Analytical.shipped(), version=version or row.protocol.version)
    return predictor.predict(row.work, row.gpu, row.load)


def ours(row: Deployment) -> tuple[float, float]:
    """Our TTFT and TPOT in ms."""
    prediction = predicted(row)
    return prediction.ttft_ms.value, prediction.tpot_ms.value


def overlapped(row: Deployment) -> tuple[float, float]:
    """Ours, if the host's part had been hidden behind the device's."""
    prediction = predicted(row, replace(row.protocol.version, overlapped=True))
    return prediction.ttft_ms.value, prediction.tpot_ms.value


def nominal(rows: Sequence[Deployment]) -> tuple[Deployment, ...]:
    """The same rows taken at their face value: lengths as asked for, cache as the model."""
    return tuple(
        replace(row, protocol=replace(row.protocol, mean_length=1, cache="bf16")) for row in rows
    )


def tpot_errors(
    rows: Sequence[Deployment], said: Callable[[Deployment], tuple[float, float] | None]
) -> Errors:
    """Errors of TPOT in the rows that were answered."""
    answers = ((row, said(row)) for row in rows)
    return Errors(tuple(said[1] / row.tpot_ms - 1 for row, said in answers if said))
