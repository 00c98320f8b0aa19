"""What our team requires of every LLM deployment."""

from __future__ import annotations

from pytest_llmdeploy import Bytes, Expect, Plan, check


@check("Team's share of devices", require="team.max_devices", hint="lower parallel.data")
def team_devices(plan: Plan, required: int, expect: Expect) -> None:
    """A deployment takes no more devices than the team has."""
    expect(plan.devices).at_most(required)


@check("Weights per rank", require="team.max_weights", hint="raise parallel.tensor")
def weights_per_rank(plan: Plan, required: Bytes, expect: Expect) -> None:
    """No rank holds more weights than this."""
    weights = {str(rank): Bytes(rank.weights_bytes or 0) for rank in plan.ranks}
    expect(weights, "on each rank").at_most(required)
