"""What a strategy is ranked by: requests per second and device within the latency limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pytest_llmdeploy.facts import Gpu
from pytest_llmdeploy.plan.latency import Estimate, Prediction, Predictor
from pytest_llmdeploy.plan.planner import Sized
from pytest_llmdeploy.plan.workload import default_predictor, load, work
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.units import show

_METRICS = ("ttft", "tpot")
# Concurrency is found to within this factor.
_PRECISION = 1.02


@dataclass(frozen=True, slots=True)
class Point:
    """The highest concurrency of a copy at which the limits hold, and what comes of it.

    `throughput` is in requests/s for each device of the hardware; `problem` says which limit is
    not to be kept, or why the declared load is too much.
    """

    prediction: Prediction
    throughput: Estimate
    problem: str = ""


@dataclass(frozen=True)
class Goal:
    """One workload, and the tightest limit on each metric in ms."""

    workload: Workload
    limits: Mapping[str, float]
    gpu: Gpu
    predictor: Predictor

    @classmethod
    def of(cls, spec: Spec) -> Self | None:
        """The first workload that has latency limits, or the first; None where nothing can be
        predicted.
        """
        gpu = spec.hardware.device.gpu
        if gpu is None or not spec.workloads or spec.parallel.prefill_context > 1:
            return None
        limited = (workload for workload in spec.workloads if tightest(workload))
        workload = next(limited, spec.workloads[0])
        return cls(workload, tightest(workload), gpu, default_predictor())

    def best_point(self, sized: Sized) -> Point:
        """Where a deployment does the most while it keeps the limits; without any that it keeps,
        where it does one request at a time.
        """
        asked = work(sized, self.workload)

        def at(concurrency: float | None) -> Prediction:
            given = load(sized.spec, sized, self.workload, concurrency)
            return self.predictor.predict(asked, self.gpu, given)

        found = at(float(2**30))
        if self._exceeded(found):
            low, high, found = 1.0, found.concurrency, at(1.0)
            if exceeded := self._exceeded(found):
                return Point(found, self._throughput(sized, found), exceeded)
            while high > low * _PRECISION:
                middle = at((low * high) ** 0.5)
                if self._exceeded(middle):
                    high = (low * high) ** 0.5
                else:
                    low, found = (low * high) ** 0.5, middle
        return Point(found, self._throughput(sized, found), self._overload(sized, found))

    def _exceeded(self, found: Prediction) -> str:
        """The limit that is exceeded; empty when all are kept."""
        for metric, limit in self.limits.items():
            value = found.ttft_ms.value if metric == "ttft" else found.tpot_ms.value
            if value > limit:
                return f"{metric.upper()} {show(value, 'ms')}, the limit is {show(limit, 'ms')}"
        return ""

    def _overload(self, sized: Sized, found: Prediction) -> str:
        copies = sized.spec.parallel.data
        rate, places = self.workload.rate, self.workload.concurrency
        total = self._throughput(sized, found).value * sized.spec.hardware.devices
        if rate is not None and rate > total:
            return f"takes {total:.3g} of {rate} within the limits"
        if places is not None and places > found.concurrency * copies:
            return f"runs {found.concurrency * copies:.0f} of {places} requests within the limits"
        return ""

    def _throughput(self, sized: Sized, found: Prediction) -> Estimate:
        """By Little's law: what runs, divided by how long each stays."""
        tokens = max(0.0, self.workload.mean_output - 1)
        copies, devices = sized.spec.parallel.data, sized.spec.hardware.devices

        def rate(ttft: float, tpot: float) -> float:
            return found.concurrency * copies / devices * 1000 / (ttft + tokens * tpot)

        ttft, tpot = found.ttft_ms, found.tpot_ms
        return Estimate(
            rate(ttft.value, tpot.value), rate(ttft.high, tpot.high), rate(ttft.low, tpot.low)
        )


def tightest(workload: Workload) -> Mapping[str, float]:
    """The smallest limit on TTFT and TPOT, over all percentiles, in ms."""
    latency = workload.require.latency
    return {
        metric: min(float(limit) for limit in latency[metric].values())
        for metric in _METRICS
        if metric in latency
    }
