"""Measured deployments of vLLM, put as the predictor's questions.

They are the rows of silicon_sample.csv in aiconfigurator-core (Apache-2.0), which is read where it
is installed and never copied.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pytest_llmdeploy.facts import Gpu, gpus
from pytest_llmdeploy.plan.latency import Load, Version, Work

GIB = 1024**3
SYSTEMS = {
    "h100_sxm": "H100-SXM-80GB",
    "h200_sxm": "H200-SXM-141GB",
    "b200_sxm": "B200-SXM-180GB",
}
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}  # NVFP4: a scale of 8 bits for 16 weights
UTILIZATION = 0.9
OUTSIDE_TORCH_GIB, SAMPLER_BYTES = 0.55, 38.8  # facts/memory.json
Precision = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The shape of a dense model: what its bytes and operations follow from."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int

    @property
    def linear(self) -> int:
        """Weights of the layers' matrix products."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        return self.vocab * self.hidden


QWEN = Model(
    name="Qwen/Qwen3-32B",
    layers=64,
    hidden=5120,
    intermediate=25600,
    heads=64,
    kv_heads=8,
    head_size=128,
    vocab=151936,
)
LLAMA = Model(
    name="meta-llama/Llama-3.1-70B",
    layers=80,
    hidden=8192,
    intermediate=28672,
    heads=64,
    kv_heads=8,
    head_size=128,
    vocab=128256,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a series was measured, as far as it is documented and matters to a prediction.

    `mean_length` is the mean of the lengths sent, as a share of the nominal ones; `sequences` is
    max_num_seqs (None: the concurrency of the row); `version` is what vLLM did by then.
    """

    model: Model
    precision: Precision
    cache: Literal["bf16", "fp8"]
    mean_length: float
    sequences: int | None
    version: Version


# vLLM 0.12 with its defaults; fixed lengths.
QWEN_BF16 = Protocol(
    model=QWEN,
    precision="bf16",
    cache="bf16",
    mean_length=1,
    sequences=1024,
    version=Version(fused=False),
)


def llama(system: str, precision: Precision) -> Protocol:
    """InferenceMAX's (now InferenceX) settings for Llama 3.1 70B in October 2025.

    benchmarks/70b_*.sh there: kv-cache-dtype fp8, max-num-batched-tokens 8192,
    gpu-memory-utilization 0.9, RANDOM_RANGE_RATIO 0.8, which draws lengths from 80 to 100 %; on
    B200 also max-num-seqs 512 and enable_fi_allreduce_fusion.
    """
    b200 = system == "b200_sxm"
    return Protocol(
        model=LLAMA,
        precision=precision,
        cache="fp8",
        mean_length=0.9,
        sequences=512 if b200 else None,
        version=Version(fused=b200),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One measured row: the nominal question, and the TTFT and TPOT (ms) that were seen."""

    system: str
    tensor: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    protocol: Protocol

    @property
    def gpu(self) -> Gpu:
        return gpus()[SYSTEMS[self.system]]

    @property
    def load(self) -> Load:
        share = self.protocol.mean_length
        return Load(
            input_tokens=self.input_tokens * share,
            output_tokens=self.output_tokens * share,
            concurrency=self.concurrency,
            max_num_seqs=self._sequences,
            max_num_batched_tokens=8192,
        )

    @property
    def work(self) -> Work:
        model, width = self.protocol.model, 2 if self.protocol.cache == "bf16" else 1
        kv = model.layers * 2 * max(1, model.kv_heads // self.tensor) * model.head_size * width
        weights = model.linear * WEIGHT_BYTES[self.protocol.precision] + model.head * 2
        return Work(
            tensor=self.tensor,
            pipeline=1,
            data=1,
            expert=False,
            layers=model.layers,
            stage_layers=model.layers,
            hidden=model.hidden,
            weights_bytes=round(weights / self.tensor),
            expert_bytes=0,
            experts=0,
            total_experts=0,
            experts_per_token=0,
            flops_per_token=2 * model.linear / self.tensor,
            attention_flops=4 * model.heads / self.tensor * model.head_size * model.layers,
            kv_bytes_per_token=kv,
            compute=self.protocol.precision,
            kv_tokens=self._pool(weights / self.tensor, kv),
            nodes=1,
            cache=self.protocol.cache,
        )

    @property
    def _sequences(self) -> int:
        return self.protocol.sequences or self.concurrency

    def _pool(self, weights: float, kv: int) -> int:
        """Tokens that fit beside weights, embedding, sampler and what torch does not count."""
        model = self.protocol.model
        embedding = 2 * model.head / self.tensor
        sampler = SAMPLER_BYTES * self._sequences * model.vocab
        free = self.gpu.visible_bytes * UTILIZATION - weights - embedding - sampler
        return int((free - OUTSIDE_TORCH_GIB * GIB) / kv)


def package() -> Path | None:
    """Where aiconfigurator-core is installed; it is not imported."""
    spec = find_spec("aiconfigurator_core")
    return Path(spec.origin).parent if spec and spec.origin else None


def deployments(system: str, protocol: Protocol) -> tuple[Deployment, ...]:
    """The rows of one series, aggregated serving by vLLM; none where they are not installed."""
    precision = {"bf16": ""}.get(protocol.precision, protocol.precision)
    wanted = ("vllm", "agg", protocol.model.name, system, precision)
    keys = ("backend", "mode", "model_path", "system", "precision")
    found = (row for row in _rows() if tuple(row[key] for key in keys) == wanted)
    return tuple(sorted((_deployment(row, protocol) for row in found), key=_order))


def without(rows: Iterable[Deployment], **fixed: float) -> tuple[Deployment, ...]:
    """The rows in which the named fields have other values."""
    return tuple(r for r in rows if all(getattr(r, key) != value for key, value in fixed.items()))


@cache
def _rows() -> tuple[dict[str, str], ...]:
    place = package()
    if place is None:
        return ()
    with (place / "systems" / "silicon_sample.csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def _deployment(row: dict[str, str], protocol: Protocol) -> Deployment:
    return Deployment(
        system=row["system"],
        tensor=int(row["tp_size"]),
        input_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        concurrency=int(row["batch_size"]),
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
        protocol=protocol,
    )


def _order(row: Deployment) -> tuple[int, ...]:
    return row.tensor, row.input_tokens, row.output_tokens, row.concurrency
