"""Memory of every device: as planned, at rest and under load."""

from pytest_llmdeploy.checks.conditions import on_gpus, under_load
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import Bytes, Fraction

_LESS = "lower serve.gpu_memory_utilization (on the CPU kv_cache_memory_bytes), or use more devices"
_SAME = 0.99  # of the same GPU, boards and drivers show a little more or less


@check(
    "Memory of each device",
    when=on_gpus,
    hint="it is another product, or a slice of one: check hardware.device",
)
def memory_total(host: Host, spec: Spec, expect: Expect) -> None:
    """Every device has the memory that is declared, less 1 % at most."""
    declared = spec.hardware.device.total_bytes or 0
    expect(host.devices.total, "on each device").at_least(Bytes(declared * _SAME))


@check("Memory utilization, planned", require="memory.max_utilization", hint=_LESS)
def planned_memory_utilization(plan: Plan, spec: Spec, required: Fraction, expect: Expect) -> None:
    """What vLLM will fill of every device stays within the limit."""
    expect.judge(requirements.memory_utilization(plan, spec, required))


@check("Memory headroom, planned", require="memory.min_headroom", hint=_LESS)
def planned_memory_headroom(plan: Plan, required: Bytes, expect: Expect) -> None:
    """What will be left of every device is enough."""
    expect.judge(requirements.memory_headroom(plan, required))


@check("Memory utilization", require="memory.max_utilization", hint=_LESS)
def memory_utilization(server: Server, required: Fraction, expect: Expect) -> None:
    """What is used of every device stays within the limit."""
    expect(server.devices.utilization, "of each device").at_most(required)


@check("Memory headroom", require="memory.min_headroom", hint=_LESS)
def memory_headroom(server: Server, required: Bytes, expect: Expect) -> None:
    """Every device keeps the headroom that the spec asks for."""
    expect(server.devices.headroom, "on each device").at_least(required)


@check(
    "Memory utilization, under load", require="memory.max_utilization", when=under_load, hint=_LESS
)
def memory_utilization_under_load(traffic: Traffic, required: Fraction, expect: Expect) -> None:
    """The most that is used of every device while the traffic runs stays within the limit."""
    most = traffic.devices.most(lambda device: device.utilization)
    expect(most, "of each device").at_most(required)


@check("Memory headroom, under load", require="memory.min_headroom", when=under_load, hint=_LESS)
def memory_headroom_under_load(traffic: Traffic, required: Bytes, expect: Expect) -> None:
    """Every device keeps the headroom while the traffic runs."""
    least = traffic.devices.least(lambda device: device.headroom)
    expect(least, "on each device").at_least(required)
