"""An earlier run, read from its report, and how far it is from a later one."""

from pytest_llmdeploy.baseline.document import BaselineError, Earlier, read_baseline
from pytest_llmdeploy.baseline.latency import (
    METRICS,
    PERCENTILES,
    Moved,
    NotComparableError,
    both_sent,
    latencies,
    moved,
)
from pytest_llmdeploy.baseline.memory import AT_REST, UNDER_LOAD, growth, used

__all__ = [
    "AT_REST",
    "METRICS",
    "PERCENTILES",
    "UNDER_LOAD",
    "BaselineError",
    "Earlier",
    "Moved",
    "NotComparableError",
    "both_sent",
    "growth",
    "latencies",
    "moved",
    "read_baseline",
    "used",
]
