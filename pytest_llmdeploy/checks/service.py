"""Whether everything that is asked for is served."""

from dataclasses import replace

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.workload import GoodputRequire
from pytest_llmdeploy.units import Fraction


@check(
    "Errors, {workload}",
    require="workloads.{workload}.require.errors",
    hint="the JSON report has an example of each kind, under the workload's failures",
)
def errors(traffic: Traffic, workload: Workload, required: Fraction, expect: Expect) -> None:
    """Of the requests that were sent, no more than this fraction failed."""
    sent = traffic[workload]
    found = sent.errors.at_most(required, "of requests")
    is_failed = found.status is Status.FAIL
    expect.judge(replace(found, hint=sent.most_failures) if is_failed else found)


@check(
    "Goodput, {workload}",
    require="workloads.{workload}.require.goodput",
    hint="the report's traffic says which latency is long: lower the rate, or add devices",
)
def goodput(traffic: Traffic, workload: Workload, required: GoodputRequire, expect: Expect) -> None:
    """At least the share of all requests is within every limit at once, at the declared
    confidence.
    """
    expect.judge(traffic[workload].goodput(required).at_least(f"with {required}"))


@check(
    "Keeps up, {workload}",
    require="workloads.{workload}.require.keeps_up",
    hint="more arrives than is served: lower the rate or add devices",
)
def keeps_up(traffic: Traffic, workload: Workload, expect: Expect) -> None:
    """At least 98 % of what arrives is served, and the backlog does not grow by the rest."""
    expect.judge(traffic[workload].keeps_up())


@check(
    "Concurrency, {workload}",
    require="workloads.{workload}.require.concurrent_sequences",
    hint="raise serve.max_num_seqs or the KV cache, or the workload's concurrency",
)
def concurrent_sequences(
    traffic: Traffic, workload: Workload, required: int, expect: Expect
) -> None:
    """The server ran that many sequences at the same time."""
    expect(traffic[workload].running_peak, "at once").at_least(required)


@check(
    "Preemptions, {workload}",
    require="workloads.{workload}.require.preemptions",
    hint="the KV cache is too small for this concurrency: lower serve.max_num_seqs or enlarge it",
)
def preemptions(traffic: Traffic, workload: Workload, required: int, expect: Expect) -> None:
    """The server preempted no more sequences than this during the workload."""
    expect(traffic[workload].preempted).at_most(required)
