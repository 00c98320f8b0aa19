"""Whether the load is shared evenly."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.units import Fraction
from pytest_llmdeploy.verdict import Readings


@check(
    "Layer balance",
    require="balance.layers",
    hint="choose parallel.pipeline so that it divides the layers, or state parallel.layers",
)
def layer_balance(plan: Plan, required: Fraction, expect: Expect) -> None:
    """Every pipeline stage has about as many layers as the mean."""
    expect.judge(requirements.layer_balance(plan, required))


@check(
    "Memory balance",
    require="balance.memory",
    hint="look for another tenant on the device, or a rank that is not doing its part",
)
def memory_balance(server: Server, required: Fraction, expect: Expect) -> None:
    """Within its pipeline stage, every device uses about as much memory as the mean."""
    devices = server.devices
    stages = devices.by_stage().values() or [devices]
    judgements = [Readings.of(stage.used).within(required, "in each stage") for stage in stages]
    expect.judge(max(judgements, key=lambda j: (not j.status.is_green, j.measured or 0.0)))
