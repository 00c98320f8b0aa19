"""Whether every rank takes the memory that is planned for it."""

from dataclasses import asdict, replace

from pytest_llmdeploy.checks.conditions import under_load
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.plan.agreement import agreement
from pytest_llmdeploy.probes import Devices, Host
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.units import Fraction

_HINT = (
    "look for flags that the spec does not have and for other processes on the device; with "
    "neither, the plan is wrong for this model: raise require.plan_agrees"
)


@check("Plan agrees", require="plan_agrees", hint=_HINT)
def plan_agrees(server: Server, host: Host, plan: Plan, required: Fraction, expect: Expect) -> None:
    """At rest, every rank has in use what is planned for it."""
    devices = server.devices.beyond(_baseline(server, host))
    found = agreement(plan, devices.used, required)
    if asked := server.introspection:
        # What vLLM says of its parts, beside the sum that is read from outside.
        workers = [asdict(worker) for worker in asked.workers]
        found = replace(found, evidence={**found.evidence, "workers": workers})
    expect.judge(found)


@check("Plan agrees, under load", require="plan_agrees", hint=_HINT, when=under_load)
def plan_agrees_under_load(
    server: Server, host: Host, traffic: Traffic, plan: Plan, required: Fraction, expect: Expect
) -> None:
    """While the traffic runs, no rank takes more than is planned for it."""
    recording = traffic.devices.beyond(_baseline(server, host))
    most = recording.most(lambda device: device.used)
    found = agreement(plan, most, required)
    looks = recording.summary(lambda device: device.used)
    expect.judge(replace(found, evidence={**found.evidence, "looks": looks}))


def _baseline(server: Server, host: Host) -> Devices:
    """What was in use before a launch; of a server that was there before us, nothing is known."""
    return host.devices if server.pid is not None else Devices((), "no baseline")
