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
    hint="end and remove what is left: it would hold devices, ports and memory",
)
def clean_stop(stopped: Stopped, expect: Expect) -> None:
    """No process, socket, temporary file or shared memory of the server is left."""
    left = ", ".join(name for names in stopped.left.values() for name in names)
    result = left or f"none left after {stopped.seconds:.1f} s"
    source = "the process table, the sockets, the server's TMPDIR and /dev/shm after the stop"
    evidence = {"source": source, **stopped.left, "removed": stopped.removed}
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
