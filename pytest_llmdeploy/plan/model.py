"""What follows from a spec without running anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pytest_llmdeploy.plan.layout import Place
from pytest_llmdeploy.plan.shape import ModelShape


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

    def __str__(self) -> str:
        return f"rank {self.rank}"


@dataclass(frozen=True, slots=True)
class KvCache:
    """The KV cache of one data-parallel copy. `tokens` and `max_concurrency` are as vLLM prints
    them; the ranges say how far they move with what is only known in ranges.
    """

    tokens: int
    max_concurrency: float
    block_size: int
    blocks_range: tuple[int, int]

    def sequences(self, tokens: int) -> tuple[int, int]:
        """How many sequences of so many tokens it holds at once, at least and at most."""
        blocks = -(-tokens // self.block_size)
        return self.blocks_range[0] // blocks, self.blocks_range[1] // blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The deployment as vLLM would lay it out; `unknown` says why when the shape is not known."""

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

    @property
    def is_feasible(self) -> bool:
        return not self.violations

    @property
    def refusal(self) -> str:
        """Why a server must not be launched; empty when nothing stands against it."""
        return "; ".join(map(str, self.violations))

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
            },
            "prediction": None,
            "alternatives": [],
            "unknown": self.unknown,
        }
