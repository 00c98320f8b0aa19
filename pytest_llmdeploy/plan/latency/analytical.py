"""The analytical predictor, and for what its parameters hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmdeploy import facts
from pytest_llmdeploy.facts import Gpu
from pytest_llmdeploy.plan.latency.copies import Copy
from pytest_llmdeploy.plan.latency.parameters import DEFAULT, Engine, Kernels, Version
from pytest_llmdeploy.plan.latency.records import Estimate, Load, Prediction, Work
from pytest_llmdeploy.plan.latency.step import step_of

UNSEEN = frozenset({"pipeline", "experts", "nodes"})  # no deployment with it was ever compared


@dataclass(frozen=True, slots=True)
class Analytical:
    """The predictor of this module; `shipped` is the one with the fitted parameters."""

    kernels: Mapping[str, Kernels]
    engine: Engine
    range: Mapping[str, Any]
    band: Mapping[str, float]
    version: Version = DEFAULT

    @classmethod
    @cache
    def shipped(cls) -> Analytical:
        """The parameters of facts/latency.json, read once."""
        return cls.of(json.loads(Path(facts.__file__).with_name("latency.json").read_text("utf-8")))

    @classmethod
    def of(cls, raw: Mapping[str, Any], version: Version = DEFAULT) -> Analytical:
        kernels = {name: Kernels.of(gpu) for name, gpu in raw["gpus"].items()}
        return cls(kernels, Engine.of(raw["engine"]), raw["range"], raw["band"], version)

    def predict(self, work: Work, gpu: Gpu, load: Load) -> Prediction:
        """Predict what one copy does under `load`; without rate and concurrency, at its most."""
        step = step_of(work, gpu, self._kernels(gpu), self.engine, self.version)
        copy = Copy(work, load, step)
        most = copy.most
        capacity = copy.throughput(most)
        if load.rate is not None:
            saturated = load.rate >= capacity
            batch = most if saturated else copy.batch_at(load.rate, capacity)
            running = most if saturated else batch - 1
        else:
            saturated = load.concurrency is not None and load.concurrency > most
            batch = running = min(most, max(1.0, load.concurrency or most))
        outside = self._outside(work, gpu, load, batch)
        spread = self._spread(outside)
        return Prediction(
            ttft_ms=_estimate(copy.ttft(batch), spread + self.band["ttft"]),
            tpot_ms=_estimate(copy.tpot(batch), spread),
            capacity=_estimate(capacity, spread),
            concurrency=running,
            saturated=saturated,
            outside=outside,
        )

    def _kernels(self, gpu: Gpu) -> Kernels:
        """Those of that GPU, else of the first one of its generation, else of the first one."""
        known = self.kernels.get(gpu.name)
        if known is not None:
            return known
        kin = (k for k in self.kernels.values() if k.capability == gpu.compute_capability[0])
        return next(kin, next(iter(self.kernels.values())))

    def _outside(self, work: Work, gpu: Gpu, load: Load, batch: float) -> tuple[str, ...]:
        asked = {
            "tensor": work.tensor,
            "layers": work.layers,
            "concurrency": batch,
            "input_tokens": load.input_tokens,
            "output_tokens": load.output_tokens,
        }
        known = self.range
        flags = {
            "gpu": gpu.name not in known["gpus"],
            "compute": work.compute not in known["compute"],
            "pipeline": work.pipeline > 1,
            "experts": work.total_experts > 0,
            "nodes": work.nodes > 1,
        }
        names = (key for key, value in asked.items() if not known[key][0] <= value <= known[key][1])
        return (*names, *(key for key, is_so in flags.items() if is_so))

    def _spread(self, outside: tuple[str, ...]) -> float:
        """Half the width of TPOT's band, as a fraction of the value."""
        if not outside:
            return self.band["inside"]
        return self.band["unseen" if UNSEEN.intersection(outside) else "outside"]


def _estimate(value: float, spread: float) -> Estimate:
    return Estimate(value, value * (1 - spread), value * (1 + spread))
