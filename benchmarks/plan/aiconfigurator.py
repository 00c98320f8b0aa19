"""What aiconfigurator-core itself says about the measured deployments."""

from __future__ import annotations

from benchmarks.plan.deployments import Deployment
from pytest_llmdeploy.plan.second_opinion import SecondOpinion

# The package brings the shape along under the model's later name.
NAMES = {"meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B"}


def latency(row: Deployment) -> tuple[float, float] | None:
    """TTFT and TPOT in ms at the lengths that were sent; None where it sees no room in memory."""
    name = row.protocol.model.name
    opinion = SecondOpinion(NAMES.get(name, name))
    return opinion.latency(row.work, row.gpu, row.load, row.concurrency)
