"""Load: arrivals, prompts, the streaming client, and the traffic that they make.

What sends it is in `load.runner`, which brings the HTTP client along and is imported when needed.
"""

from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.load.traffic import Latencies, Traffic, WorkloadTraffic

__all__ = [
    "Latencies",
    "Outcome",
    "Sample",
    "Traffic",
    "WorkloadTraffic",
]
