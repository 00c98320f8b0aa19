"""Deployments of which something is shared out, and what their engines were dealt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_llmdeploy.load.engines import REQUESTS, TOKENS, Dealt, Engines
from tests.checks.scenes import Scene

COPIES: Mapping[str, Any] = {
    "parallel": {"tensor": 4, "data": 2},
    "require": {"balance": {"requests": "30%", "tokens": "30%"}},
}
QWEN = Scene(
    spec={
        "model": {"id": "Qwen/Qwen3-30B-A3B"},
        "parallel": {"tensor": 4, "expert": True},
        "hardware": {"devices_per_node": 4},
        "require": {"balance": {"experts": "0%"}, "devices": 4},
    }
)
SIX: Mapping[str, Any] = {
    "parallel": {"tensor": 1, "data": 6, "expert": True},
    "hardware": {"devices_per_node": 6},
}


def dealt(*counts: float, worth: float = 20.0) -> Dealt:
    """A window in which each engine got so many requests, of 16 tokens each."""
    requests = {f"engine {index}": count for index, count in enumerate(counts)}
    tokens = {name: 16 * count for name, count in requests.items()}
    return Dealt({REQUESTS: requests, TOKENS: tokens}, {REQUESTS: 1.0, TOKENS: worth})


def engines(windows: Sequence[Dealt], **more: Any) -> Engines:
    return Engines(windows, 0.05, 0.025, **{"problem": "", **more})


EVEN, STARVED = [dealt(8, 7), dealt(7, 8)] * 30, [dealt(15, 0)] * 60
