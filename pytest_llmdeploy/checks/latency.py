"""Latencies under load: each percentile is one row, judged on the requests that were sent."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.units import Duration, Percentile

_SLOW_PREFILL = (
    "requests wait or prefill slowly: lower the rate, raise max_num_batched_tokens, or add devices"
)
_SLOW_DECODE = "decoding is slow: lower max_num_seqs, raise parallel.tensor, or quantize"


@check(
    "TTFT {percentile}, {workload}",
    require="workloads.{workload}.require.ttft.{percentile}",
    hint=_SLOW_PREFILL,
)
def ttft(
    traffic: Traffic, workload: Workload, percentile: Percentile, required: Duration, expect: Expect
) -> None:
    """Of all requests, no more than the percentile leaves take longer from when they were due to
    their first token, at the declared confidence.
    """
    expect(traffic[workload].ttft.at(percentile)).at_most(required)


@check(
    "TPOT {percentile}, {workload}",
    require="workloads.{workload}.require.tpot.{percentile}",
    hint=_SLOW_DECODE,
)
def tpot(
    traffic: Traffic, workload: Workload, percentile: Percentile, required: Duration, expect: Expect
) -> None:
    """Of all requests, no more than the percentile leaves take longer for a token after the first,
    on average, at the declared confidence.
    """
    expect(traffic[workload].tpot.at(percentile)).at_most(required)


@check(
    "ITL {percentile}, {workload}",
    require="workloads.{workload}.require.itl.{percentile}",
    hint=_SLOW_DECODE,
)
def itl(
    traffic: Traffic, workload: Workload, percentile: Percentile, required: Duration, expect: Expect
) -> None:
    """Of all gaps between tokens, no more than the percentile leaves are longer, at the declared
    confidence; each request counts with its own part of them.
    """
    expect(traffic[workload].itl.at(percentile)).at_most(required)


@check(
    "E2EL {percentile}, {workload}",
    require="workloads.{workload}.require.e2el.{percentile}",
    hint=_SLOW_DECODE,
)
def e2el(
    traffic: Traffic, workload: Workload, percentile: Percentile, required: Duration, expect: Expect
) -> None:
    """Of all requests, no more than the percentile leaves take longer from when they were due to
    their last token, at the declared confidence.
    """
    expect(traffic[workload].e2el.at(percentile)).at_most(required)


@check(
    "Stall {percentile}, {workload}",
    require="workloads.{workload}.require.stall.{percentile}",
    hint="prefills of other requests interrupt decoding: lower serve.max_num_batched_tokens",
)
def stall(
    traffic: Traffic, workload: Workload, percentile: Percentile, required: Duration, expect: Expect
) -> None:
    """Of all requests, no more than the percentile leaves have a longer silence between two events,
    at the declared confidence.
    """
    expect(traffic[workload].stall.at(percentile)).at_most(required)
