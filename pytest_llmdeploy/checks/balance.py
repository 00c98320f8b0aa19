"""Whether the load is shared evenly."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.probes import Host
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
    "Expert balance",
    require="balance.experts",
    hint="choose data × tensor so that it divides the experts, or require less",
)
def experts_balance(plan: Plan, required: Fraction, expect: Expect) -> None:
    """No rank holds many more routed experts than the mean: the others would wait for it."""
    expect.judge(requirements.experts_balance(plan, required))


@check(
    "Memory balance",
    require="balance.memory",
    hint="look for another tenant on the device, or a rank that is not doing its part",
)
def memory_balance(host: Host, server: Server, required: Fraction, expect: Expect) -> None:
    """Within its pipeline stage, every device uses about as much memory as the mean: of a launched
    server, beyond what was in use before.
    """
    devices = server.devices.beyond(host.devices) if server.pid is not None else server.devices
    stages = devices.by_stage().values() or [devices]
    judgements = [Readings.of(stage.used).within(required, "in each stage") for stage in stages]
    expect.judge(max(judgements, key=lambda j: (not j.status.is_green, j.measured or 0.0)))


_ROUTING = "see how requests are routed: sessions, prefixes or a header may pin them to one engine"


@check("Request balance", require="balance.requests", hint=_ROUTING)
def request_balance(traffic: Traffic, required: Fraction, expect: Expect) -> None:
    """No data-parallel engine answers many more requests than the mean."""
    expect.judge(traffic.shares("requests").within(required))


@check("Token balance", require="balance.tokens", hint=_ROUTING)
def token_balance(traffic: Traffic, required: Fraction, expect: Expect) -> None:
    """No data-parallel engine generates many more tokens than the mean."""
    expect.judge(traffic.shares("tokens").within(required))
