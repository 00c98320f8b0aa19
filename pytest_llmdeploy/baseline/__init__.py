"""An earlier run, read from its report, and how far latencies have moved since."""

from pytest_llmdeploy.baseline.document import BaselineError, Earlier, read_baseline
from pytest_llmdeploy.baseline.latency import METRICS, PERCENTILES, Moved, moved, not_comparable

__all__ = [
    "METRICS",
    "PERCENTILES",
    "BaselineError",
    "Earlier",
    "Moved",
    "moved",
    "not_comparable",
    "read_baseline",
]
