"""Specs for the tests: small, valid, and varied by overriding what a test is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parent.parent
TINY_MODEL = REPOSITORY / "specs" / "models" / "tiny-llama"

TINY: Mapping[str, Any] = {
    "version": 1,
    "model": {"id": str(TINY_MODEL), "dtype": "float32"},
    "hardware": {"device": {"name": "cpu", "memory": "4GiB"}, "devices_per_node": 2},
    "parallel": {"tensor": 2},
    "serve": {
        "served_model_name": "tiny-llama",
        "max_model_len": 512,
        "kv_cache_memory_bytes": "256MiB",
    },
}

STEADY: Mapping[str, Any] = {
    "name": "steady",
    "input_tokens": 16,
    "output_tokens": 4,
    "rate": "100/s",
    "warmup": "100ms",
    "max_duration": "10s",
    "require": {"ttft": {"p50": "5s"}},
}


def spec_text(**overrides: Any) -> str:
    """`TINY` as YAML, with top-level keys replaced; None removes one."""
    document = {**TINY, **overrides}
    kept = {key: value for key, value in document.items() if value is not None}
    return yaml.safe_dump(kept, sort_keys=False)


def write_spec(path: Path, **overrides: Any) -> Path:
    """A spec file made of `spec_text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(spec_text(**overrides))
    return path
