"""Whether the devices that are declared are there, and every rank is up."""

from pytest_llmdeploy.checks.conditions import on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.probes import Devices, Host
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec


@check(
    "Devices present",
    when=on_gpus,
    hint="check nvidia-smi -L, CUDA_VISIBLE_DEVICES and what the container was given",
)
def devices_present(host: Host, spec: Spec, expect: Expect) -> None:
    """This machine has the GPUs that the spec declares for a node, of that kind; elsewhere, the
    nodes have them all, or the pods those that they use.
    """
    wanted, gpu = _wanted(spec), spec.hardware.device.gpu
    kind = gpu.nvml_name if gpu else ""
    fitting = [device for device in host.devices if kind in ("", device.kind)]
    others = sorted({device.kind or "unreadable" for device in host.devices} - {kind})
    also = f", also {', '.join(others)}" if kind and others else ""
    expect.judge(
        _counted(
            host.devices,
            len(fitting),
            wanted,
            f"{wanted} × {kind or spec.hardware.device.name}",
            f"{len(fitting)} of {len(host.devices)}{also}",
        )
    )


@check("Ranks up", hint="look in the server's log for the rank that is missing")
def ranks_up(server: Server, plan: Plan, spec: Spec, expect: Expect) -> None:
    """Every rank of the plan has its device."""
    devices = server.devices
    expect.judge(
        _counted(
            devices,
            len(devices),
            plan.devices,
            f"{plan.devices} = {spec.parallel}",
            f"{len(devices)} of {plan.devices} ranks up",
        )
    )


def _wanted(spec: Spec) -> int:
    probes = spec.attach.probes if spec.attach else None
    if probes is None:
        return spec.hardware.devices_per_node
    return spec.parallel.devices if probes.is_for_pods else spec.hardware.devices


def _counted(devices: Devices, found: int, wanted: int, requirement: str, result: str) -> Judgement:
    evidence = {"source": devices.source, "devices": devices.to_json()}
    if devices.problem:
        return Judgement(
            status=Status.ERROR,
            requirement=requirement,
            result=devices.problem,
            limit=wanted,
            evidence=evidence,
        )
    return judged(
        found == wanted,
        requirement,
        result,
        measured=found,
        bound=found,
        limit=wanted,
        evidence=evidence,
    )
