"""What is left when the server has been stopped."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.serving import Stopped


@check(
    "Clean stop",
    launched=True,
    hint="processes of the server outlive it: they would hold their devices",
)
def clean_stop(stopped: Stopped, expect: Expect) -> None:
    """No process of the server is left."""
    left = ", ".join(stopped.processes)
    result = left or f"none left after {stopped.seconds:.1f} s"
    evidence = {"source": "the process table", "processes": list(stopped.processes)}
    expect.judge(judged(not left, "no process left", result, evidence=evidence))
