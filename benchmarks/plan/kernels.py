"""Shares of peak that vLLM's kernels reach on each GPU, from published kernel measurements.

The tables are those of aiconfigurator-core (Apache-2.0): systems/data/<system>/<kind>/vllm/*.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from benchmarks.plan.deployments import package
from pytest_llmdeploy.facts import Gpu, gpus

SYSTEMS = {
    "H100-SXM-80GB": "h100_sxm",
    "H200-SXM-141GB": "h200_sxm",
    "B200-SXM-180GB": "b200_sxm",
    "A100-SXM-80GB": "a100_sxm",
    "L40S-48GB": "l40s",
}
DTYPES = {"bf16": ("bfloat16", 2.0), "fp8": ("fp8", 1.0), "fp4": ("nvfp4", 0.5625)}
# hidden, intermediate, heads, KV heads, head size of the dense models of 8, 32 and 70 billion
SHAPES = ((4096, 14336, 32, 8, 128), (5120, 25600, 64, 8, 128), (8192, 28672, 64, 8, 128))
TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
OVERLAP = 2.5
NEAR = 0.25  # how far, in logarithms of both sides, a tabulated product may be from the wanted one
PRODUCTS = 4  # of a dense layer
HEAD, GROUP = 128, 8  # head size, and query heads per KV head, of most dense models
LONG, WIDE, LARGE = 1024, 4, 1e6  # prompt and heads in prefill, bytes of cache in decoding


def kernels(name: str) -> dict[str, Any]:
    """The fitted shares of one GPU of the catalogue, as facts/latency.json has them."""
    gpu, system = gpus()[name], SYSTEMS[name]
    table = _table(system, "gemm", "gemm_perf")
    products = {
        precision: _product(table[table.gemm_dtype == dtype], gpu, precision, width)
        for precision, (dtype, width) in DTYPES.items()
        if dtype in set(table.gemm_dtype) and (precision == "bf16" or gpu.fp8_flops)
    }
    for product in products.values():
        # The tables time the quantization of the input along; vLLM fuses it into the kernel before.
        product["us"] = products["bf16"]["us"]
    return {
        "capability": gpu.compute_capability[0],
        "products": products,
        "attention": _attention(system, gpu),
        "collective": _collective(system, gpu),
    }


def _table(system: str, kind: str, name: str) -> pd.DataFrame:
    place = package() or Path()
    files = sorted((place / "systems" / "data" / system / kind / "vllm").glob(f"*/{name}.parquet"))
    return pd.read_parquet(files[-1])


def _robust(residual: Any, start: list[float], low: list[float], high: list[float]) -> list[float]:
    found = least_squares(residual, start, loss="soft_l1", f_scale=0.1, bounds=(low, high))
    return [float(value) for value in found.x]


def _product(table: pd.DataFrame, gpu: Gpu, precision: str, width: float) -> dict[str, float]:
    peak = gpu.bf16_flops
    if precision != "bf16":
        peak = (gpu.fp8_flops or 0) * (2 if precision == "fp4" else 1)
    tokens, weights, seconds = np.array(list(_layers(table))).T

    def residual(x: Any) -> Any:
        read = weights * width / (gpu.hbm_bytes_per_s * x[1])
        calculated = 2 * tokens * weights / (peak * x[2])
        both = (read**OVERLAP + calculated**OVERLAP) ** (1 / OVERLAP)
        return np.log((PRODUCTS * x[0] * 1e-6 + both) / seconds)

    us, read, compute = _robust(residual, [5, 0.8, 0.7], [0, 0.1, 0.1], [30, 1, 1])
    return {"us": us, "read": read, "compute": compute}


def _layers(table: pd.DataFrame) -> Iterator[tuple[int, int, float]]:
    """Tokens, weights and seconds of a layer's four products, by the nearest tabulated ones."""
    times = _steady(table.groupby(["m", "n", "k"]).latency.median() * 1e-3)
    sizes = table[["n", "k"]].drop_duplicates().to_numpy()
    for shape in SHAPES:
        for tensor in (1, 2, 4, 8):
            wanted = _sizes(*shape, tensor)
            away = [np.abs(np.log(sizes / size)).sum(axis=1) for size in wanted]
            if max(distance.min() for distance in away) > NEAR:
                continue
            near = [tuple(sizes[distance.argmin()]) for distance in away]
            for m in TOKENS:
                if all((m, n, k) in times.index for n, k in near):
                    parts = (
                        times[(m, *have)] * n * k / (have[0] * have[1])
                        for have, (n, k) in zip(near, wanted, strict=True)
                    )
                    yield m, sum(n * k for n, k in wanted), sum(parts)


def _steady(times: pd.Series[float]) -> pd.Series[float]:
    """Without the outliers: a product of fewer tokens takes no longer than one of more."""
    backwards = times.sort_index(level="m", ascending=False)
    return backwards.groupby(level=["n", "k"]).cummin()


def _sizes(
    hidden: int, inner: int, heads: int, kv: int, size: int, tensor: int
) -> list[tuple[int, int]]:
    return [
        ((heads + 2 * kv) * size // tensor, hidden),
        (hidden, heads * size // tensor),
        (2 * inner // tensor, hidden),
        (hidden, inner // tensor),
    ]


def _attention(system: str, gpu: Gpu) -> dict[str, dict[str, float]]:
    decode = _table(system, "attention", "generation_attention_perf")
    decode = decode[
        (decode.head_dim == HEAD) & (decode.num_heads == GROUP * decode.num_key_value_heads)
    ]
    prefill = _table(system, "attention", "context_attention_perf")
    prefill = prefill[
        (prefill.head_dim == HEAD) & (prefill.isl >= LONG) & (prefill.num_heads >= WIDE)
    ]
    found = {}
    for name, dtype, width in (("bf16", "bfloat16", 2), ("fp8", "fp8", 1)):
        one, other = (_plain(table[table.kv_cache_dtype == dtype]) for table in (decode, prefill))
        if len(one) and len(other):
            found[name] = _attention_of(one, other, gpu, width)
    return found


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.window_size <= 0] if "window_size" in table else table


def _attention_of(
    decode: pd.DataFrame, prefill: pd.DataFrame, gpu: Gpu, width: int
) -> dict[str, float]:
    context = decode.isl.astype(float) + decode.step.astype(float)
    moved = decode.batch_size * context * 2 * decode.num_key_value_heads * HEAD * width
    decode, moved = decode[moved > LARGE], moved[moved > LARGE]

    def residual(x: Any) -> Any:
        modelled = x[0] * 1e-6 + moved / (gpu.hbm_bytes_per_s * x[1])
        return np.log(modelled / (decode.latency * 1e-3))

    us, read = _robust(residual, [5, 0.5], [0, 0.05], [100, 1])
    if "step" in prefill:
        prefill = prefill[prefill.step.astype(float) == 0]
    work = 2 * prefill.num_heads * HEAD * prefill.batch_size * prefill.isl.astype(float) ** 2
    share = float(np.median(work / (gpu.bf16_flops * prefill.latency * 1e-3)))
    return {"us": us, "read": read, "compute": share}


def _collective(system: str, gpu: Gpu) -> dict[str, float]:
    """Over groups of 2, 4 and 8 within CUDA graphs; the mean of the three."""
    table = _table(system, "comm", "custom_allreduce_perf")
    table = table[table.kernel_source.str.contains("graph")]
    table = table[table.message_size.between(8192, 1.4e8)]
    found = [_sum_over(table[table.num_gpus == n], n, gpu) for n in (2, 4, 8)]
    us, rate = np.mean(np.array(found), axis=0)
    return {"us": float(us), "rate": float(rate)}


def _sum_over(table: pd.DataFrame, ranks: int, gpu: Gpu) -> list[float]:
    sent = 2 * (ranks - 1) / ranks * table.message_size

    def residual(x: Any) -> Any:
        modelled = x[0] * 1e-6 + sent / (gpu.link_bytes_per_s * x[1])
        return np.log(modelled / (table.latency * 1e-3))

    return _robust(residual, [5, 0.5], [0, 0.01], [100, 1])
