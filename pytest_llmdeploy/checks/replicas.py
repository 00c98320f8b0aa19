"""Whether all replicas behind an address are one deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.spec.attach import Probes

if TYPE_CHECKING:
    from pytest_llmdeploy.probes.replicas import Replica


def _has_engines(spec: Spec) -> bool:
    """The spec names the replicas (`attach.engines`)."""
    return bool(spec.attach and spec.attach.engines)


def _probes(spec: Spec) -> Probes | None:
    return spec.attach.probes if spec.attach else None


def _names_pods(spec: Spec) -> bool:
    """The spec names the pods whose devices these are (`attach.probes`)."""
    probes = _probes(spec)
    return bool(probes and probes.is_for_pods)


@check(
    "Replicas",
    when=_has_engines,
    hint="look at the pods behind the Service: one is not ready, or was started otherwise",
)
def replicas(server: Server, expect: Expect) -> None:
    """Every replica answers, and serves the same model, length, version and cache configuration."""
    from pytest_llmdeploy.probes.replicas import read_replicas  # noqa: PLC0415 - if live

    found = read_replicas(server.replicas)
    faults = [f"{replica.url}: {replica.problem}" for replica in found if replica.problem]
    faults += _differences([replica for replica in found if not replica.problem])
    good = sum(not replica.problem for replica in found)
    expect.judge(
        judged(
            not faults,
            f"all {len(found)} alike",
            "; ".join([f"{good} of {len(found)} answer", *faults]),
            measured=good,
            bound=good,
            limit=len(found),
            evidence={
                "source": "/health, /v1/models, /version and /metrics of each",
                "replicas": {r.url: r.problem or dict(r.settings) for r in found},
            },
        )
    )


@check(
    "Pods on the devices",
    when=_names_pods,
    hint="a GPU is shared with another pod: give the server GPUs of its own",
)
def pods_on_devices(server: Server, spec: Spec, expect: Expect) -> None:
    """No pod but those of the server is on its devices."""
    devices, probes = server.devices, _probes(spec)
    shared = {
        device.name: [pod for pod in device.pods if not (probes and probes.covers(pod))]
        for device in devices
    }
    foreign = [f"{', '.join(pods)} ({name})" for name, pods in shared.items() if pods]
    requirement = "no other pod on any device"
    if devices.problem:
        result = devices.problem
        expect.judge(Judgement(status=Status.ERROR, requirement=requirement, result=result))
        return
    expect.judge(
        judged(
            not foreign,
            requirement,
            "; ".join(foreign) or f"none on {len(devices)} devices",
            measured=len(foreign),
            bound=len(foreign),
            limit=0,
            evidence={"source": devices.source, "pods": {d.name: list(d.pods) for d in devices}},
        )
    )


def _differences(found: Sequence[Replica]) -> list[str]:
    """What some say otherwise than the first, by name, with who says it."""
    first: Mapping[str, str] = found[0].settings if found else {}
    return [
        f"{replica.url} has {name} {replica.settings.get(name)}, not {value}"
        for name, value in first.items()
        for replica in found
        if replica.settings.get(name) != value
    ]
