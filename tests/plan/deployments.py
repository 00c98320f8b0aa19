"""Deployments to plan and to check: a base, and what a test changes in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmdeploy.spec import Spec
from tests.specs import TINY

LLAMA_70B: Mapping[str, Any] = {
    "version": 1,
    "name": "llama",
    "model": {"id": "meta-llama/Meta-Llama-3-70B-Instruct", "dtype": "bfloat16"},
    "hardware": {"device": "H100-SXM-80GB", "devices_per_node": 8},
    "parallel": {"tensor": 8},
    "serve": {"max_model_len": 8192, "max_num_seqs": 128, "gpu_memory_utilization": 0.85},
}

# A small dense model; every size can be divided by 2, 4 and 8.
CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def made(base: Mapping[str, Any] = LLAMA_70B, **changes: Any) -> Spec:
    """The spec `base` with some keys of its sections replaced; None removes a section."""
    return Spec.model_validate({"name": "spec", **_merged(base, changes)})


def tiny(**changes: Any) -> Spec:
    """The two-rank CPU deployment with some keys replaced."""
    return made(TINY, **changes)


def with_config(path: Path, config: Mapping[str, Any], **changes: Any) -> Spec:
    """The 8-GPU deployment of a model with this config.json, which is written to `path`."""
    path.write_text(json.dumps(config))
    own = {"model": {"id": "own/model", "config": str(path)}, "serve": {"max_model_len": 4096}}
    return made(**_merged(own, changes))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return {key: value for key, value in result.items() if value is not None}
