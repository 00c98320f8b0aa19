"""How fast a strategy would be: TTFT, TPOT and capacity of one data-parallel copy."""

from pytest_llmdeploy.plan.latency.analytical import Analytical
from pytest_llmdeploy.plan.latency.parameters import Version
from pytest_llmdeploy.plan.latency.records import (
    Cache,
    Compute,
    Estimate,
    Load,
    Prediction,
    Predictor,
    Work,
)

__all__ = [
    "Analytical",
    "Cache",
    "Compute",
    "Estimate",
    "Load",
    "Prediction",
    "Predictor",
    "Version",
    "Work",
]
