"""What follows from a spec without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llmdeploy.plan.kv_cache import KvCache
from pytest_llmdeploy.plan.latency import Prediction
from pytest_llmdeploy.plan.layout import Place
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.plan.search import Alternative

# So many alternatives go into a report; the declared one is among the first of its kind.
_MOST_TOLD = 60


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that the spec breaks: where, why, and the vLLM function that would refuse it."""

    rule: str
    key: str
    message: str
    source: str

    def __str__(self) -> str:
        return f"{self.message} (vLLM: {self.source})" if self.source else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(Place):
    """One worker process at its place; bytes are None where the spec does not determine them."""

    weights_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    kv_blocks: int | None = None
    kv_tokens: int | None = None
    activation_bytes: tuple[int, int] | None = None
    headroom_bytes: int | None = None
    used_bytes: int | None = None
    experts: int | None = None

    def __str__(self) -> str:
        return f"rank {self.rank}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """The deployment as vLLM would lay it out; `unknown` says why when the shape is not known.

    `needed_utilization` is the least gpu_memory_utilization with which the declared sequences fit;
    `prediction` is by workload, and empty where nothing is known of the device's speed.
    """

    spec: Spec
    devices: int
    available: int
    parameters: int | None
    ranks: tuple[Rank, ...]
    violations: tuple[Violation, ...]
    kv_cache: KvCache | None
    max_model_len: int | None
    stage_layers: tuple[int, ...] | None
    shape: ModelShape | None
    unknown: str = ""
    needed_utilization: float | None = None
    prediction: Mapping[str, Prediction] = field(default_factory=dict)

    def __repr__(self) -> str:
        # A failing assert shows it, among what was compared.
        return f"<plan of {self.spec.name}>"

    @property
    def is_feasible(self) -> bool:
        return not self.violations

    @property
    def refusal(self) -> str:
        """Why a server must not be launched; empty when nothing stands against it."""
        return "; ".join(map(str, self.violations))

    @cached_property
    def alternatives(self) -> tuple[Alternative, ...]:
        """All strategies on this hardware, the best first: a search, made when first asked for."""
        from pytest_llmdeploy.plan.search import alternatives  # noqa: PLC0415 - it makes plans

        return alternatives(self.spec)

    def to_json(self) -> dict[str, Any]:
        """The `plan` object of the report."""
        return {
            "devices": self.devices,
            "parameters": self.parameters,
            "ranks": [asdict(rank) for rank in self.ranks],
            "violations": [{**asdict(v), "text": str(v)} for v in self.violations],
            "kv_cache": self.kv_cache
            and {
                "tokens": self.kv_cache.tokens,
                "max_concurrency": self.kv_cache.max_concurrency,
                "longest_sequence": self.kv_cache.longest(self.max_model_len or 0),
            },
            "needed_utilization": self.needed_utilization,
            "prediction": self._prediction(),
            "alternatives": [one.to_json() for one in self.alternatives[:_MOST_TOLD]],
            "considered": len(self.alternatives),
            "unknown": self.unknown,
        }

    def _prediction(self) -> dict[str, Any] | None:
        """The first workload's, and all by name."""
        if not self.prediction:
            return None
        found = {name: prediction_json(one) for name, one in self.prediction.items()}
        return {**next(iter(found.values())), "workloads": found}


def prediction_json(found: Prediction) -> dict[str, Any]:
    """A prediction as the report has it: values, and the bands in which they are expected."""
    figures = ("ttft_ms", "tpot_ms", "capacity")
    estimates = {name: getattr(found, name) for name in figures}
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "bands": {name: [one.low, one.high] for name, one in estimates.items()},
        "concurrency": found.concurrency,
        "saturated": found.saturated,
        "outside": list(found.outside),
    }
