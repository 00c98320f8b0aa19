"""Every machine turns the rows that it must, and no other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from pytest_llmdeploy.checks import Expect, NotPassed, Registry, Requirement, requirements
from pytest_llmdeploy.evidence import Judgement
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.probes import Host, patience, read_host, read_used_gpus
from pytest_llmdeploy.probes.fields import CHANGING
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.serving import Stopped
from pytest_llmdeploy.spec import Spec
from tests.checks.scenes import REQUIRED, Scene
from tests.fake_nvml import FakeNvml
from tests.machines import MACHINES, OURS, Machine

REQUIREMENTS = {**REQUIRED["require"], "driver": ">=550", "cuda": ">=12.4", "persistence": True}
FAMILIES = {"ranks", "memory", "interconnect", "driver", "health", "tenancy", "shutdown"}


def declared(machine: Machine) -> dict[str, Any]:
    """The deployment that is meant for the machine."""
    environment = {} if machine.visible is None else {"CUDA_VISIBLE_DEVICES": machine.visible}
    parallel = {"tensor": 8 // machine.groups, "data": machine.groups}
    serve = {"gpu_memory_utilization": 0.85, "env": environment}
    return {"require": REQUIREMENTS, "serve": serve, "parallel": parallel}


@cache
def planned(groups: int) -> Plan:
    """Its plan, which does not depend on what is found."""
    return plan(Scene(spec=declared(Machine(groups=groups))).declared())


def found(fake: FakeNvml, machine: Machine) -> Scene:
    """What the probes read of a machine, in each phase."""
    spec = Scene(spec=declared(machine)).declared()
    read: dict[str, Any] = {}
    for phase in machine.states(fake):
        if phase == "host":
            host = read_host(spec)
            read |= {"present": host.devices, "nvlink": host.nvlink, "driver": host.driver}
        elif phase == "live":
            looks = [read_used_gpus(spec, CHANGING)]
            read |= {"devices": read_used_gpus(spec), "under_load": looks}
        else:
            read["returned"] = read_used_gpus(spec)
    watched = [device.name for device in read["devices"]]
    xids = Xids(devices=watched, seconds=90)
    return Scene(spec=declared(machine), pids=frozenset({OURS}), xids=xids, **read)


def judged(scene: Scene) -> Iterator[tuple[str, Judgement]]:
    """What every check of the devices says."""
    spec = scene.declared()
    fixtures = {
        "spec": spec,
        "plan": planned(spec.parallel.data),
        "host": Host(scene.present, scene.nvlink, scene.driver),
        "server": scene._server(spec),
        "traffic": scene._traffic(spec),
        "stopped": Stopped(scene.left, 1.5, scene.returned),
    }
    for requirement in of_devices(spec):
        name, function = requirement.check.name, requirement.check.function
        expect = Expect(requirement)
        given = {**fixtures, "required": requirement.value, "expect": expect}
        with suppress(NotPassed):
            function(**{key: given[key] for key in inspect.signature(function).parameters})
        assert expect.judgement is not None
        yield name, expect.judgement


def of_devices(spec: Spec) -> Iterator[Requirement]:
    """What a spec requires of devices that are there."""
    for requirement in requirements(spec, Registry()):
        check = requirement.check
        asked = inspect.signature(check.function).parameters
        if not {"host", "server", "traffic", "stopped"}.isdisjoint(asked) and (
            check.family in FAMILIES or check.name == "memory_balance"
        ):
            yield requirement


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is wrong turns its own rows; whatever fails says what to change."""
    if "hangs" in name:
        monkeypatch.setattr(patience, "SECONDS", 0.5)
    judgements = dict(judged(found(machine, MACHINES[name])))
    statuses = {check: judgement.status for check, judgement in judgements.items()}
    wrong = {check: status for check, status in statuses.items() if status != "PASS"}
    assert wrong == MACHINES[name].wrong, {c: judgements[c].result for c in wrong}
    assert all(judgements[check].hint for check in wrong if statuses[check] == "FAIL")


def test_every_check_fails_on_some_machine() -> None:
    """But for those that the library under the probes has no part in."""
    spec = Scene(spec=declared(Machine())).declared()
    checks = {requirement.check.name for requirement in of_devices(spec)}
    failed = {
        check
        for machine in MACHINES.values()
        for check, status in machine.wrong.items()
        if status == "FAIL"
    }
    assert checks - failed == {"xids", "clean_stop"}
