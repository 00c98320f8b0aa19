"""The engine's parameters, fitted to one series: Qwen3-32B in bf16 on H100, vLLM 0.12.

No other series is fitted; the kernels' shares come from kernel measurements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.plan.deployments import QWEN_BF16, Deployment, deployments, without
from benchmarks.plan.kernels import OVERLAP, PRODUCTS, SYSTEMS, kernels
from pytest_llmdeploy import facts
from pytest_llmdeploy.plan.latency import Analytical

PLACE = Path(facts.__file__).with_name("latency.json")
FITTED_GPU = "H100-SXM-80GB"
# A quantization kernel on a row of 8192 takes 2.4 us; beside its products and attention, a layer
# has two norms, the rotation, the cache's write and the activation.
KERNEL_US, KERNELS, NORMS = 2.4, 5, 2
IN_SWITCH = 9  # compute capability from which NVLink switches add up
DIGITS = 4
# name: start, least, most. The last four are factors on the kernels' shares.
FREE = {
    "host_us": (200.0, 0.0, 6000.0),
    "sequence_us": (5.0, 0.0, 200.0),
    "skew_us": (3.0, 0.0, 40.0),
    "mixed_us": (1000.0, 0.0, 20000.0),
    "read": (1.0, 0.7, 1.14),
    "compute": (1.0, 0.5, 1.2),
    "rate": (1.0, 0.3, 3.0),
}


def fit() -> dict[str, Any]:
    """What facts/latency.json says, all of it, from the installed tables."""
    tables = {name: kernels(name) for name in SYSTEMS}
    rows = deployments("h100_sxm", QWEN_BF16)
    found = _least(tables, rows)
    fold = {
        name: crossed(tables, rows, name) for name in ("tensor", "input_tokens", "output_tokens")
    }
    return {**_facts(tables, rows, found, fold), **_rounded(parameters(tables, found))}


def write() -> None:
    """Fit, and replace the facts."""
    PLACE.write_text(json.dumps(fit(), indent=2) + "\n", encoding="utf-8")


def crossed(tables: dict[str, Any], rows: Sequence[Deployment], name: str) -> list[float]:
    """Errors of rows by a fit without the rows that have the same value of that field."""
    errors: list[float] = []
    for value in sorted({getattr(row, name) for row in rows}):
        kept = without(rows, **{name: value})
        found = _least(tables, kept)
        left = [row for row in rows if row not in kept]
        errors += list(np.exp(_residuals(tables, left, found)) - 1)
    return errors


def parameters(tables: dict[str, Any], found: dict[str, float]) -> dict[str, Any]:
    """The kernels' shares with the fitted factors, and the engine's own figures."""
    engine = {name: value for name, value in found.items() if name.endswith("_us")}
    return {
        "engine": {
            "overlap": OVERLAP,
            "products": PRODUCTS,
            "layer_us": KERNELS * KERNEL_US,
            "norms_us": NORMS * KERNEL_US,
            **engine,
            "stage_us": 150.0,
            "network": {"us": 30.0, "rate": 0.8},
            "network_bytes_per_s": 50e9,
        },
        "gpus": {name: _corrected(table, found) for name, table in tables.items()},
    }


def _corrected(table: dict[str, Any], found: dict[str, float]) -> dict[str, Any]:
    products = {
        name: {
            "us": product["us"],
            "read": min(1.0, product["read"] * found["read"]),
            "compute": min(1.0, product["compute"] * found["compute"]),
        }
        for name, product in table["products"].items()
    }
    factor = found["rate"] if table["capability"] >= IN_SWITCH else 1.0
    collective = table["collective"]
    rate = min(1.0, collective["rate"] * factor)
    return {**table, "products": products, "collective": {**collective, "rate": rate}}


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    return round(tree, DIGITS) if isinstance(tree, float) else tree


def _least(tables: dict[str, Any], rows: Sequence[Deployment]) -> dict[str, float]:
    start, low, high = zip(*FREE.values(), strict=True)
    scale = np.array(high)

    def residual(x: Any) -> Any:
        return _residuals(tables, rows, dict(zip(FREE, x * scale, strict=True)))

    bounds = (np.array(low) / scale, np.ones(len(FREE)))
    found = least_squares(
        residual, np.array(start) / scale, bounds=bounds, loss="soft_l1", f_scale=0.05
    )
    return {name: float(x) for name, x in zip(FREE, found.x * scale, strict=True)}


def _residuals(
    tables: dict[str, Any], rows: Sequence[Deployment], found: dict[str, float]
) -> np.ndarray[Any, Any]:
    raw = parameters({FITTED_GPU: tables[FITTED_GPU]}, found)
    predictor = Analytical.of({**raw, **_NOWHERE}, QWEN_BF16.version)
    said = [predictor.predict(row.work, row.gpu, row.load).tpot_ms.value for row in rows]
    return np.log(np.array(said) / np.array([row.tpot_ms for row in rows]))


_RANGES = ("tensor", "layers", "concurrency", "input_tokens", "output_tokens")
_NOWHERE = {  # a fit asks for no band
    "range": {"gpus": [], "compute": [], **dict.fromkeys(_RANGES, (0, 0))},
    "band": {"inside": 0, "outside": 0, "unseen": 0, "ttft": 0},
}


def _facts(
    tables: dict[str, Any],
    rows: Sequence[Deployment],
    found: dict[str, float],
    fold: dict[str, list[float]],
) -> dict[str, Any]:
    errors = np.abs(np.exp(_residuals(tables, rows, found)) - 1)
    folds = {name: np.abs(np.array(values)) for name, values in fold.items()}
    worst = max(float(np.quantile(values, 0.95)) for values in folds.values())
    return {
        "sources": {
            "kernels": "gpus: fitted to the kernel tables of aiconfigurator-core 0.12.0 "
            "(Apache-2.0), systems/data/*/{gemm,attention,comm}/vllm: products of a dense "
            "layer of 8, 32 and 70 billion parameters at TP 1 to 8, attention with 8 query "
            "heads per KV head, sums over 2, 4 and 8 GPUs in CUDA graphs",
            "deployments": "engine, and the factors that gpus already contain: fitted to "
            f"{len(rows)} deployments of Qwen3-32B in bf16 on H100, vLLM 0.12, of "
            "silicon_sample.csv in the same package",
            "layer_us, norms_us": "five further kernels, each like the tables' quantization "
            "kernel (2.4 us); two are norms",
            "form": "the model's terms were settled with the mean errors of the other series of "
            "that file in sight, so those are not an untouched test set",
            "stage_us, network": "nobody's measurement: assumptions (400 Gb/s per GPU)",
        },
        "fit": {
            "factors": {n: round(v, DIGITS) for n, v in found.items() if not n.endswith("_us")},
            "mean_error": round(float(errors.mean()), DIGITS),
            "mean_error_by_left_out": {
                name: round(float(values.mean()), DIGITS) for name, values in folds.items()
            },
        },
        "range": {
            "gpus": [FITTED_GPU],
            "compute": ["bf16"],
            "layers": [QWEN_BF16.model.layers] * 2,
            **{
                name: [
                    min(getattr(row, name) for row in rows),
                    max(getattr(row, name) for row in rows),
                ]
                for name in ("tensor", "concurrency", "input_tokens", "output_tokens")
            },
        },
        "band": {
            "inside": round(worst, 2),
            "outside": 0.2,
            "unseen": 0.35,
            "ttft": 0.2,
            "source": "inside: the 95th percentile of errors with one tensor-parallel size or "
            "length left out of the fit; outside: the limit that benchmarks/plan checks on the "
            "other series; unseen, and what ttft adds: nobody's measurement, a judgement",
        },
    }
