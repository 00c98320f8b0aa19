"""Catalogues as data: GPUs, model shapes, vLLM's flags, NVML's words; figures with their source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the catalogue knows of a GPU: bytes, bytes per second, operations per second."""

    name: str
    nvml_name: str
    memory_bytes: int
    visible_bytes: int
    compute_capability: tuple[int, int]
    link: str
    hbm_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float | None
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Flag:
    """A long option of `vllm serve`, by its name in snake_case.

    `kind` is boolean (with a --no- form), switch, value, list or repeated.
    """

    name: str
    kind: str
    choices: tuple[Any, ...] = ()
    aliases: tuple[str, ...] = ()
    type: str = ""


@cache
def gpus() -> Mapping[str, Gpu]:
    """The GPU catalogue, by catalogue key."""
    return {name: _gpu(name, raw) for name, raw in _read("gpus.json")["gpus"].items()}


@cache
def model_configs() -> Mapping[str, Mapping[str, Any]]:
    """Published model shapes in the words of their config.json, by Hugging Face id."""
    models = _read("models.json")["models"]
    return {name: {**models.get(raw.get("like"), {}), **raw} for name, raw in models.items()}


@cache
def memory_range(name: str) -> tuple[float, float]:
    """What a part of a rank's memory takes, at least and at most (memory.json)."""
    low, high = _read("memory.json")[name]["range"]
    return low, high


@cache
def nvml_words(kind: str) -> Mapping[int, str]:
    """What the codes of an enumeration, or the bits of a mask, of NVML say."""
    return {int(code): text for code, text in _read("nvml.json")[kind].items()}


@cache
def vllm_flags() -> Mapping[str, Flag]:
    """VLLM's options, by name."""
    return {
        name: Flag(name, **{key: _tuple(value) for key, value in raw.items()})
        for name, raw in _read("vllm_flags.json")["flags"].items()
    }


def _gpu(name: str, raw: Mapping[str, Any]) -> Gpu:
    memory = raw["memory_mib"] * 1024**2
    # CUDA shows a little less than NVML counts; where nobody measured it, as much less as on H100.
    visible = raw["visible_gib"] or memory / 1024**3 * 79.18 / 79.65
    fp8 = raw["fp8_tflops"]
    return Gpu(
        name=name,
        nvml_name=raw["nvml_name"],
        memory_bytes=memory,
        visible_bytes=round(visible * 1024**3),
        compute_capability=tuple(raw["compute_capability"]),
        link=raw["link"],
        hbm_bytes_per_s=raw["hbm_tb_per_s"] * 1e12,
        bf16_flops=raw["bf16_tflops"] * 1e12,
        fp8_flops=None if fp8 is None else fp8 * 1e12,
        link_bytes_per_s=raw["link_gb_per_s"] * 1e9,
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read(name: str) -> Any:
    return json.loads((_HERE / name).read_text(encoding="utf-8"))
