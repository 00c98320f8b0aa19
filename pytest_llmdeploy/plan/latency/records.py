"""What a latency prediction is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pytest_llmdeploy.facts import Gpu

Compute = Literal["bf16", "fp8", "fp4"]
Cache = Literal["bf16", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a rank of the busiest stage moves and calculates. Bytes and operations are per rank.

    With `expert`, experts are dealt out over data × tensor ranks. `weights_bytes` are read in every
    step; `expert_bytes` are one routed expert's, over the stage's layers (0: a dense model), and
    the rank holds `experts` of the `total_experts` of each layer. `flops_per_token` leaves out the
    attention scores; `attention_flops` are those of one pair of query and context token.
    `kv_tokens` is the pool of one copy (None: unlimited); a tensor-parallel group spans `nodes`.
    `cache` is the precision in which keys and values are kept.
    """

    tensor: int
    pipeline: int
    data: int
    expert: bool
    layers: int
    stage_layers: int
    hidden: int
    weights_bytes: int
    expert_bytes: int
    experts: int
    total_experts: int
    experts_per_token: int
    flops_per_token: float
    attention_flops: float
    kv_bytes_per_token: int
    compute: Compute
    kv_tokens: int | None
    nodes: int
    cache: Cache = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one copy is asked for: `concurrency` (closed loop) or `rate` (open loop, requests/s)."""

    input_tokens: float
    output_tokens: float
    concurrency: float | None = None
    rate: float | None = None
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value (ms, or requests/s) and the band in which it is expected."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of one copy under a load.

    `ttft_ms` is one prompt's prefill at that load, without queueing. `capacity` is the rate in
    requests/s that a copy sustains. `saturated`: more is asked than fits into a step, the KV pool
    or the capacity; `concurrency` is then what runs. `outside` names in which respects the question
    lies outside the range that the parameters were fitted on.
    """

    ttft_ms: Estimate
    tpot_ms: Estimate
    capacity: Estimate
    concurrency: float
    saturated: bool
    outside: tuple[str, ...]


class Predictor(Protocol):
    """Anything that predicts the latency of a strategy."""

    def predict(self, work: Work, gpu: Gpu, load: Load) -> Prediction: ...
