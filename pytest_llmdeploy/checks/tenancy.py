"""Whether the devices are this deployment's alone."""

from pytest_llmdeploy.checks.conditions import on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.probes.occupancy import Occupancy, idle
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec


@check(
    "Devices idle",
    when=on_gpus,
    launched=True,
    hint="end that process, or leave the device out with CUDA_VISIBLE_DEVICES",
)
def devices_idle(host: Host, spec: Spec, expect: Expect) -> None:
    """Before the launch, nobody uses the devices that the server will get."""
    expect.judge(idle(host.devices.first(spec.parallel.devices)))


@check(
    "Nothing foreign",
    when=on_gpus,
    hint="see nvidia-smi for who is on the device: keep others off it for this deployment",
)
def only_ours(host: Host, server: Server, plan: Plan, expect: Expect) -> None:
    """Every device that serves has a process of this server, and no other."""
    planned = [rank.used_bytes for rank in plan.ranks if rank.used_bytes is not None]
    occupancy = Occupancy(
        devices=server.devices,
        ours=server.read_pids(),
        before=host.devices if server.pid is not None else None,
        planned=max(planned, default=None),
    )
    expect.judge(occupancy.only_ours())
