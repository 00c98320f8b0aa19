"""Whether the GPUs are in order: before the launch, and while they serve."""

from pytest_llmdeploy.checks.conditions import gpus_under_load, on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.facts import nvml_words
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.health import remapped, uncorrected, without_xids
from pytest_llmdeploy.probes.throttling import throttling
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.verdict import Readings


@check(
    "ECC errors",
    when=on_gpus,
    hint="reset the GPU (nvidia-smi --gpu-reset -i <number>); if errors come back, replace it",
)
def ecc(host: Host, expect: Expect) -> None:
    """No GPU has had an uncorrected memory error since the driver was loaded."""
    expect.judge(uncorrected(host.devices))


@check(
    "Row remapping",
    when=on_gpus,
    hint="reset the GPU for what is pending; replace it where a row could not be remapped",
)
def row_remapping(host: Host, expect: Expect) -> None:
    """No row of a GPU's memory waits to be remapped, or could not be."""
    expect.judge(remapped(host.devices))


@check(
    "Recovery action",
    when=on_gpus,
    hint="do what NVML asks for; a reset is nvidia-smi --gpu-reset -i <number>",
)
def recovery(host: Host, expect: Expect) -> None:
    """NVML asks for nothing to be done to a GPU."""
    action = Readings.of(host.devices.read(Field.RECOVERY_ACTION))
    expect.judge(action.among([0], nvml_words("recovery_action"), "on each"))


@check(
    "Throttling",
    when=gpus_under_load,
    hint="thermal: check fans and inlet temperature; else check the power supplies and their caps",
)
def clocks(traffic: Traffic, expect: Expect) -> None:
    """While the traffic ran, neither heat nor power held a GPU's clocks back."""
    expect.judge(throttling(traffic.devices))


@check(
    "XIDs",
    when=on_gpus,
    hint="look the XID up in NVIDIA's list (docs.nvidia.com/deploy/xid-errors) and in dmesg",
)
def xids(server: Server, traffic: Traffic, expect: Expect) -> None:  # noqa: ARG001 - comes first
    """The driver reported no fault of a GPU while the server was watched."""
    expect.judge(without_xids(server.read_xids(), server.devices))
