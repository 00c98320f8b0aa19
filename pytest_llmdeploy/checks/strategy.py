"""Whether the parallel strategy is the right one, and whether its limits can be reached at all."""

from collections.abc import Mapping

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.spec import Spec, Workload
from pytest_llmdeploy.units import Duration, Fraction


def _speed_is_known(spec: Spec) -> bool:
    """The GPU is of the catalogue, and prompts are not split over ranks."""
    return spec.hardware.device.gpu is not None and spec.parallel.prefill_context == 1


@check(
    "TTFT in reach, {workload}",
    require="workloads.{workload}.require.ttft",
    when=_speed_is_known,
    hint="raise parallel.tensor, quantize, or allow more",
)
def ttft_in_reach(
    plan: Plan, workload: Workload, required: Mapping[str, Duration], expect: Expect
) -> None:
    """The tightest limit on TTFT is not below what is predicted of a prompt that needs not wait."""
    expect.judge(requirements.within_reach(plan, workload, "ttft", min(required.values())))


@check(
    "TPOT in reach, {workload}",
    require="workloads.{workload}.require.tpot",
    when=_speed_is_known,
    hint="raise parallel.tensor, quantize, or allow more",
)
def tpot_in_reach(
    plan: Plan, workload: Workload, required: Mapping[str, Duration], expect: Expect
) -> None:
    """The tightest limit on TPOT is not below what is predicted under the declared load."""
    expect.judge(requirements.within_reach(plan, workload, "tpot", min(required.values())))


@check("Strategy", require="strategy.within")
def strategy(plan: Plan, required: Fraction, expect: Expect) -> None:
    """No other strategy on this hardware is predicted to serve more requests per second and device
    by more than the fraction; what the error bands can explain is INCONCLUSIVE.
    """
    expect.judge(requirements.strategy(plan, required))
