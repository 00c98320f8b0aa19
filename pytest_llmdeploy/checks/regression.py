"""Whether the deployment is worse than it was in an earlier run, even inside its limits."""

from __future__ import annotations

from pytest_llmdeploy.baseline import (
    AT_REST,
    UNDER_LOAD,
    Earlier,
    NotComparableError,
    growth,
    latencies,
)
from pytest_llmdeploy.checks.conditions import under_load
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Fraction, Percentile
from pytest_llmdeploy.verdict import regression

_SLOWER = (
    "see what has changed since the baseline: versions, flags, the machine; where it is meant to "
    "be, make a new baseline"
)
_LARGER = "see what has changed since the baseline: versions, flags, other processes on the device"


@check(
    "TTFT {percentile} regression, {workload}",
    require="workloads.{workload}.require.regression.ttft.{percentile}",
    hint=_SLOWER,
)
def ttft_regression(
    baseline: Earlier,
    traffic: Traffic,
    workload: Workload,
    percentile: Percentile,
    required: Fraction,
    expect: Expect,
) -> None:
    """The percentile of the time to first token is longer than in the baseline by no more, at the
    declared confidence of both runs.
    """
    expect.judge(_latency("ttft", baseline, traffic, workload, percentile, required))


@check(
    "TPOT {percentile} regression, {workload}",
    require="workloads.{workload}.require.regression.tpot.{percentile}",
    hint=_SLOWER,
)
def tpot_regression(
    baseline: Earlier,
    traffic: Traffic,
    workload: Workload,
    percentile: Percentile,
    required: Fraction,
    expect: Expect,
) -> None:
    """The percentile of the time per output token is longer than in the baseline by no more, at
    the declared confidence of both runs.
    """
    expect.judge(_latency("tpot", baseline, traffic, workload, percentile, required))


@check(
    "E2EL {percentile} regression, {workload}",
    require="workloads.{workload}.require.regression.e2el.{percentile}",
    hint=_SLOWER,
)
def e2el_regression(
    baseline: Earlier,
    traffic: Traffic,
    workload: Workload,
    percentile: Percentile,
    required: Fraction,
    expect: Expect,
) -> None:
    """The percentile of the time to last token is longer than in the baseline by no more, at the
    declared confidence of both runs.
    """
    expect.judge(_latency("e2el", baseline, traffic, workload, percentile, required))


@check("Memory regression", require="regression.memory", hint=_LARGER)
def memory_regression(
    baseline: Earlier, server: Server, required: Fraction, expect: Expect
) -> None:
    """At rest, no device has more in use than in the baseline by more."""
    more = growth(server.devices.used, baseline, AT_REST)
    expect(more, "more than the baseline").at_most(required)


@check("Memory regression, under load", require="regression.memory", when=under_load, hint=_LARGER)
def memory_regression_under_load(
    baseline: Earlier, traffic: Traffic, required: Fraction, expect: Expect
) -> None:
    """While the traffic runs, the most that a device has in use is more than the most of the
    baseline by no more.
    """
    most = traffic.devices.most(lambda device: device.used)
    expect(growth(most, baseline, UNDER_LOAD), "more than the baseline").at_most(required)


def _latency(
    metric: str,
    baseline: Earlier,
    traffic: Traffic,
    workload: Workload,
    percentile: Percentile,
    required: Fraction,
) -> Judgement:
    now = traffic[workload].latencies(metric).at(percentile)
    try:
        earlier = latencies(baseline, workload)[metric]
    except NotComparableError as why:
        return Judgement(
            status=Status.ERROR, requirement=f"≤ baseline +{required}", result=str(why)
        )
    return regression(now, earlier, required)
