"""Whether the deployment has the capacity that it must have."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.load.trial import at_capacity
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Rate


@check(
    "Capacity, {workload}",
    require="workloads.{workload}.require.capacity",
    hint="`llmdeploy capacity` finds the rate up to which every limit holds: add devices beyond it",
)
def capacity(traffic: Traffic, workload: Workload, required: Rate, expect: Expect) -> None:
    """When requests come at this rate, every limit of the workload still holds."""
    expect.judge(at_capacity(traffic[workload], required))
