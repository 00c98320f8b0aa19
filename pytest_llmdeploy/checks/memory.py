"""Memory of every device: as planned, and as it is while the server serves."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import Bytes, Fraction

_LESS = "lower serve.gpu_memory_utilization (on the CPU kv_cache_memory_bytes), or use more devices"


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
