"""Workloads and requests for the tests of this room."""

from __future__ import annotations

from typing import Any

from pytest_llmdeploy.spec import Workload

MODEL = "tiny-llama"
VOCAB = 259


def workload(**overrides: Any) -> Workload:
    """An open loop of short requests, unless told otherwise."""
    given = {"name": "w", "input_tokens": 16, "output_tokens": 4, "warmup": "0s", **overrides}
    if "concurrency" not in given:
        given.setdefault("rate", "50/s")
    return Workload.model_validate(given)
