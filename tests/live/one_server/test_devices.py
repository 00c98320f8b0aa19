"""The workers of a real vLLM as devices: over time, and beside what is planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.agreement import agreement
from pytest_llmdeploy.probes import Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.probes.sampler import Sampler
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Workload, load_spec
from pytest_llmdeploy.units import Fraction
from tests.live.conftest import SHORT, TINY

TOLERANCE = Fraction(0.05)
MIB = 1024**2


@dataclass(frozen=True)
class Seen:
    """The workers of TP 2 at rest, and while something was sent."""

    at_rest: Devices
    recording: Recording


@pytest.fixture(scope="module")
def seen(tiny_server: Server) -> Seen:
    at_rest = tiny_server.devices
    workload = Workload.model_validate(SHORT)
    spec = tiny_server.spec.model_copy(update={"workloads": (workload,)})
    target = Target(endpoint=tiny_server.endpoint, model="tiny-llama", vocab=259)
    with Sampler(tiny_server.read_devices) as sampler:
        run_workloads(spec, target)
    return Seen(at_rest, sampler.recording)


def test_the_workers_are_seen_at_work(seen: Seen) -> None:
    """Every second, both ranks; the traffic shows in what they use of their cores."""
    assert len(seen.recording.looks) >= 5
    busy = seen.recording.series(lambda device: device.read(Field.UTILIZATION))
    assert set(busy) == {"rank 0", "rank 1"}
    for shares in busy.values():
        values = [evidence.value for evidence in shares if evidence.value is not None]
        assert len(values) == len(shares)
        assert sum(0 < value <= 1 for value in values) >= 2
    least = seen.recording.least(lambda device: device.used)
    assert all((evidence.value or 0) > 256 * MIB for evidence in least.values())


def test_a_look_costs_next_to_nothing(tiny_server: Server) -> None:
    """One a second, of two workers: at most 1 % of a core."""
    process, looks = psutil.Process(), 50
    before = process.cpu_times()
    for _ in range(looks):
        tiny_server.read_devices()
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    assert spent / looks < 0.01


def test_the_plan_agrees_with_what_is_read(seen: Seen, tiny_spec: Callable[..., Path]) -> None:
    """At rest and under load; with a larger KV cache than the server has it would not."""
    most = seen.recording.most(lambda device: device.used)
    larger = plan(load_spec(tiny_spec(serve={"kv_cache_memory_bytes": "1GiB"})))
    for reading in (seen.at_rest.used, most):
        judged = agreement(plan(load_spec(TINY)), reading, TOLERANCE)
        assert judged.status is Status.PASS, judged
        assert agreement(larger, reading, TOLERANCE).status is Status.FAIL
