"""Whether the devices reach each other as declared, and the host as well as they can."""

from pytest_llmdeploy.checks.conditions import gpus_under_load, on_a_fabric, on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.health import registered
from pytest_llmdeploy.probes.placement import numa_placement
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.verdict import Readings


@check(
    "NVLink in TP group",
    require="interconnect",
    hint="check nvidia-smi nvlink --status, the fabric manager, and which GPUs are visible",
)
def interconnect(host: Host, spec: Spec, expect: Expect) -> None:
    """Every pair of GPUs in a tensor-parallel group is connected by NVLink."""
    if _is_apart(spec, expect, "all pairs"):
        return
    expect(host.nvlink, "pairs").hold()


@check(
    "NVLink lanes",
    require="interconnect",
    hint="check nvidia-smi nvlink --status; reset the GPU, and replace it if a lane stays down",
)
def nvlink_lanes(host: Host, expect: Expect) -> None:
    """Every NVLink lane of every GPU is up."""
    lanes = Readings.of(host.devices.read(Field.NVLINK_LANES))
    up = Readings.of(host.devices.read(Field.NVLINK_LANES_UP))
    expect.judge(up.reach(lanes, "up on each"))


@check(
    "NVLink fabric",
    require="interconnect",
    when=on_a_fabric,
    hint="check that nvidia-fabricmanager runs, in the driver's version, and reset the GPU",
)
def nvlink_fabric(host: Host, expect: Expect) -> None:
    """Every GPU is registered with its NVSwitch fabric, at full bandwidth."""
    expect.judge(registered(host.devices))


@check(
    "PCIe width",
    when=on_gpus,
    hint="reseat the card or its riser; until then its link to the host is slower",
)
def pcie_width(host: Host, expect: Expect) -> None:
    """Every GPU's PCIe link has as many lanes as it can."""
    most = Readings.of(host.devices.read(Field.PCIE_MAX_WIDTH))
    expect.judge(Readings.of(host.devices.read(Field.PCIE_WIDTH)).reach(most, "on each"))


@check(
    "PCIe generation",
    when=gpus_under_load,
    hint="check the slot and its setting in the firmware; at rest the link may be slower",
)
def pcie_generation(traffic: Traffic, expect: Expect) -> None:
    """Under load, every GPU's PCIe link is of the newest generation that it can."""
    reached = traffic.devices.most(lambda device: device.read(Field.PCIE_GENERATION))
    most = traffic.devices.most(lambda device: device.read(Field.PCIE_MAX_GENERATION))
    expect.judge(Readings.of(reached).reach(Readings.of(most), "on each"))


@check(
    "NUMA placement",
    when=on_gpus,
    hint="order CUDA_VISIBLE_DEVICES so that the GPUs of a group are on one NUMA node",
)
def numa(host: Host, spec: Spec, expect: Expect) -> None:
    """The tensor-parallel groups span no more NUMA nodes than they must."""
    if _is_apart(spec, expect, "on the fewest NUMA nodes"):
        return
    parallel = spec.parallel
    expect.judge(numa_placement(host.devices, parallel.devices, parallel.tensor))


def _is_apart(spec: Spec, expect: Expect, requirement: str) -> bool:
    """Whether every group is a single GPU, so that nothing is asked of what lies between."""
    if spec.parallel.tensor == 1:
        evidence = {"source": "the spec"}
        expect.judge(judged(True, requirement, "TP 1 has none", evidence=evidence))
    return spec.parallel.tensor == 1
