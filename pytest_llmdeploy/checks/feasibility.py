"""Whether the deployment can work at all, and whether its workloads can decide anything."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.spec import Spec, Workload


@check("Feasible")
def feasible(plan: Plan, expect: Expect) -> None:
    """VLLM would accept the layout, and it fits into memory."""
    expect.judge(requirements.feasible(plan))


@check("Device count", require="devices", hint="let parallel and hardware multiply to the same")
def device_count(plan: Plan, spec: Spec, required: int, expect: Expect) -> None:
    """The strategy uses exactly the devices that are required, and the hardware has them."""
    expect.judge(requirements.device_count(plan, spec, required))


@check("Decidable, {workload}", require="workloads.{workload}.rate")
def decidable(spec: Spec, workload: Workload, expect: Expect) -> None:
    """Within max_duration, the workload sends enough requests to pass its percentiles."""
    expect.judge(requirements.decidable(spec, workload))


@check("Deployable")
def deployable(plan: Plan, spec: Spec, expect: Expect) -> None:
    """The spec says enough to deploy: the model's shape, a device's memory, and on the CPU the size
    of the KV cache are known.
    """
    expect.judge(requirements.deployable(plan, spec))
