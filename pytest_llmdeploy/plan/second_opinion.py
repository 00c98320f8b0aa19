"""What aiconfigurator-core expects of the same deployment: the extra `aic`, behind Predictor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_llmdeploy.facts import Gpu
from pytest_llmdeploy.plan.latency import Estimate, Load, Prediction, Work
from pytest_llmdeploy.spec import nearest

SYSTEMS = {
    "H100-SXM-80GB": "h100_sxm",
    "H200-SXM-141GB": "h200_sxm",
    "B200-SXM-180GB": "b200_sxm",
    "A100-SXM-80GB": "a100_sxm",
    "L40S-48GB": "l40s",
}
TABLES = "0.24.0"  # the version of vLLM whose kernels were measured for it
SPREAD = 0.25  # within which it was for 90 % of the rows of most series (benchmarks/plan)
PRODUCTS = {"bf16": "bfloat16", "fp8": "fp8", "fp4": "nvfp4"}
CACHES = {"bf16": "bfloat16", "fp8": "fp8"}


class SecondOpinionError(Exception):
    """There is no second opinion on this: not installed, or not what it models."""


@dataclass(frozen=True, slots=True)
class SecondOpinion:
    """A predictor that asks aiconfigurator-core about `model`, by a name that it knows.

    It models vLLM without pipeline parallelism, within a node, on the GPUs it has tables of.
    """

    model: str

    def predict(self, work: Work, gpu: Gpu, load: Load) -> Prediction:
        """As Predictor has it; raises SecondOpinionError where it has nothing to say.

        Takes some 10 ms, and seconds when a GPU is asked about for the first time.
        """
        most = self._most(work, gpu, load)
        if most == 0:
            raise SecondOpinionError(f"It sees no room for {self.model} on {gpu.name}")
        capacity = 1e3 * most / self._residence(work, gpu, load, most)
        batch = self._batch(work, gpu, load, most, capacity)
        answer = self.latency(work, gpu, load, batch)
        if answer is None:
            raise SecondOpinionError(f"It sees no room for {batch} sequences on {gpu.name}")
        if load.rate is not None:
            saturated = load.rate >= capacity
        else:
            saturated = (load.concurrency or 1) > most
        return Prediction(
            ttft_ms=_estimate(answer[0]),
            tpot_ms=_estimate(answer[1]),
            capacity=_estimate(capacity),
            concurrency=float(batch),
            saturated=saturated,
            outside=(),
        )

    def latency(self, work: Work, gpu: Gpu, load: Load, batch: int) -> tuple[float, float] | None:
        """TTFT and TPOT in ms of so many sequences; None where it sees no room for them."""
        _refuse(self.model, work, gpu)
        tokens, output = max(1, round(load.input_tokens)), max(2, round(load.output_tokens))
        config = _module("sdk.config")
        backend = _module("sdk.backends.factory").get_backend("vllm")
        summary = backend.run_agg(
            model=_model(self.model, work),
            database=_database(SYSTEMS[gpu.name]),
            runtime_config=config.RuntimeConfig(batch_size=batch, isl=tokens, osl=output),
            ctx_tokens=min(tokens, load.max_num_batched_tokens),
        )
        if summary.check_oom() or summary.check_kv_cache_oom():
            return None
        row = summary.get_summary_df().iloc[0]
        return float(row["ttft"]), float(row["tpot"])

    def _residence(self, work: Work, gpu: Gpu, load: Load, batch: int) -> float:
        answer = self.latency(work, gpu, load, batch)
        if answer is None:
            return float("inf")
        return answer[0] + max(0.0, load.output_tokens - 1) * answer[1]

    def _most(self, work: Work, gpu: Gpu, load: Load) -> int:
        """The most sequences that it sees room for, up to max_num_seqs."""
        fits, fails = 0, load.max_num_seqs + 1
        if self.latency(work, gpu, load, load.max_num_seqs) is not None:
            return load.max_num_seqs
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.latency(work, gpu, load, middle) is None:
                fails = middle
            else:
                fits = middle
        return fits

    def _batch(self, work: Work, gpu: Gpu, load: Load, most: int, capacity: float) -> int:
        """The sequences that run; for a rate the least that keep up with it (Little's law)."""
        if load.rate is None:
            return min(most, max(1, round(load.concurrency or most)))
        if load.rate >= capacity:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if 1e3 * middle / self._residence(work, gpu, load, middle) < load.rate:
                low = middle
            else:
                high = middle
        return high


def _refuse(model: str, work: Work, gpu: Gpu) -> None:
    package = find_spec("aiconfigurator_core")
    if package is None or package.origin is None:
        raise SecondOpinionError(
            "aiconfigurator-core is not installed: pip install 'pytest-llmdeploy[aic]'"
        )
    # It would look for any other on the network.
    known = {file.name: file for file in Path(package.origin).parent.glob("model_configs/*")}
    names = [name.removesuffix("_config.json").replace("--", "/", 1) for name in known]
    if model not in names:
        raise SecondOpinionError(f"It does not know the model {model!r}: {nearest(model, names)}")
    if gpu.name not in SYSTEMS:
        raise SecondOpinionError(f"It has no tables of {gpu.name}, only of {', '.join(SYSTEMS)}")
    if work.pipeline > 1 or work.nodes > 1:
        raise SecondOpinionError("It models neither pipeline stages nor several nodes")


def _module(name: str) -> Any:
    return import_module(f"aiconfigurator_core.{name}")


@cache
def _database(system: str) -> Any:
    return _module("sdk.perf_database").get_database(system, "vllm", TABLES)


def _model(name: str, work: Work) -> Any:
    ranks = work.data * work.tensor if work.total_experts else 1
    return _model_of(
        name,
        work.tensor,
        work.data if work.total_experts else 1,
        1 if work.expert else ranks,
        ranks if work.expert else 1,
        PRODUCTS[work.compute],
        CACHES[work.cache],
    )


@cache
def _model_of(
    name: str, tensor: int, data: int, moe_tensor: int, moe_expert: int, product: str, kept: str
) -> Any:
    common, config = _module("sdk.common"), _module("sdk.config")
    asked = config.ModelConfig(
        tp_size=tensor,
        attention_dp_size=data,
        moe_tp_size=moe_tensor,
        moe_ep_size=moe_expert,
        gemm_quant_mode=common.GEMMQuantMode[product],
        moe_quant_mode=common.MoEQuantMode[product],
        kvcache_quant_mode=common.KVCacheQuantMode[kept],
        fmha_quant_mode=common.FMHAQuantMode.bfloat16,
    )
    return _module("sdk.models").get_model(name, asked, "vllm")


def _estimate(value: float) -> Estimate:
    return Estimate(value, value * (1 - SPREAD), value * (1 + SPREAD))
