"""What is left when the server has been stopped."""

from pytest_llmdeploy.checks.conditions import on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.probes.occupancy import returned
from pytest_llmdeploy.serving import Stopped
from pytest_llmdeploy.spec import Spec


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


@check(
    "Memory returned",
    when=on_gpus,
    launched=True,
    hint="end the processes that nvidia-smi still lists on the device; if none, reset it",
)
def memory_returned(host: Host, stopped: Stopped, spec: Spec, expect: Expect) -> None:
    """Of every device that was served on, no more is in use than before the launch."""
    expect.judge(returned(host.devices, stopped.devices, spec.parallel.devices))
