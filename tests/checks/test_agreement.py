"""Planned bytes beside those that were read: on GPUs, and on the CPU's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Evidence, Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.agreement import agreement, planned_bytes
from pytest_llmdeploy.probes import Devices
from pytest_llmdeploy.units import Fraction
from tests.checks.scenes import GIB, Scene, gpus, idle
from tests.plan.deployments import made, tiny

AGREES = {"require": {"plan_agrees": "5%"}}
PLANNED = plan(made())
LOW, HIGH = planned_bytes(PLANNED, PLANNED.ranks[0]) or (0.0, 0.0)
USED = HIGH / GIB
SOUND = (USED,) * 8


def scene(used: Sequence[float | None] = SOUND, **changes: Any) -> Scene:
    """A launched server that must take what is planned, on GPUs with so many GiB in use."""
    given = {"spec": AGREES, "devices": gpus(used), **changes}
    return Scene(**given)


def test_what_is_planned_of_a_gpu() -> None:
    """At most what vLLM is told to fill, at least its weights and its KV cache."""
    rank, cache = PLANNED.ranks[0], PLANNED.kv_cache
    assert rank.weights_bytes is not None
    assert cache is not None
    assert rank.used_bytes == HIGH
    # 16 tokens, 80 layers, keys and values of one of the 8 heads, 128 numbers of 2 bytes.
    block = 16 * 80 * 2 * 128 * 2
    assert rank.weights_bytes + cache.blocks_range[0] * block == LOW


@pytest.mark.parametrize("name", ["plan_agrees", "plan_agrees_under_load"])
@pytest.mark.parametrize(
    ("found", "status", "result"),
    [
        (scene(), Status.PASS, f"{USED:.4g} GiB, planned "),
        (scene((*SOUND[:6], USED * 1.3, USED)), Status.FAIL, "(rank 6)"),
        (scene((*SOUND[:7], USED * 0.7)), Status.FAIL, "(rank 7)"),
        (scene((USED * 1.049,) * 8), Status.PASS, "(rank 0)"),
        (scene((LOW / GIB * 0.951,) * 8), Status.PASS, "(rank 0)"),
        (scene((None, *SOUND[1:])), Status.ERROR, "lost: GPU is lost (rank 0)"),
        (scene(SOUND[:7]), Status.ERROR, "lost: no device was read for it (rank 7)"),
        (
            scene(devices=Devices((), "NVML", "error: no driver")),
            Status.ERROR,
            "error: no driver (rank 0, rank 1, ",
        ),
        (
            scene(spec={**AGREES, "model": {"id": "unknown/model"}}),
            Status.ERROR,
            "unknown/model",
        ),
    ],
    ids=["sound", "fuller", "emptier", "high", "low", "lost", "seven", "driver", "unknown"],
)
def test_each_rank_takes_what_is_planned(
    name: str, found: Scene, status: Status, result: str
) -> None:
    """The rank that is furthest outside is named; one that can't be read is no pass."""
    judged = found.judge(name)
    assert (judged.status, result in judged.result) == (status, True), judged.result


def test_the_difference_is_in_bytes() -> None:
    """Beside what is planned and what was read; nothing for what is within."""
    used = (USED, USED * 1.5, USED * 0.5, *SOUND[3:])
    judged = scene(used, present=gpus((0,) * 8)).judge("plan_agrees")
    ranks = judged.evidence["ranks"]
    assert ranks["rank 0"]["difference"] == pytest.approx(0)
    assert ranks["rank 1"]["difference"] == pytest.approx(HIGH * 0.5)
    assert ranks["rank 2"]["difference"] == pytest.approx(HIGH * 0.5 - LOW)
    assert ranks["rank 1"]["planned"] == [LOW, HIGH]
    assert ranks["rank 1"]["reading"]["value"] == pytest.approx(HIGH * 1.5)
    assert judged.measured == pytest.approx(0.5)


def test_what_was_in_use_before_the_launch_is_not_the_ranks() -> None:
    """Where we launched; of a server that was there before, all that is in use is its own."""
    before, now = gpus((10,) * 8), gpus((USED + 10,) * 8)
    launched = scene(devices=now, present=before)
    assert launched.judge("plan_agrees").status is Status.PASS
    assert launched.judge("plan_agrees_under_load").status is Status.PASS
    attached = scene(devices=now, present=before, server={"pid": None})
    assert attached.judge("plan_agrees").status is Status.FAIL


def test_under_load_the_most_counts() -> None:
    """One look of one rank is enough; the row has the least, the median and the most."""
    fuller = gpus((*SOUND[:3], USED * 1.3, *SOUND[4:]))
    judged = scene(present=idle(), under_load=[gpus(SOUND), fuller, gpus(SOUND)]).judge(
        "plan_agrees_under_load"
    )
    assert (judged.status, judged.result.endswith("(rank 3)")) == (Status.FAIL, True)
    looks = judged.evidence["looks"]["GPU 3"]
    assert looks["min"] == looks["median"] < looks["max"]


def test_no_looks_are_no_pass() -> None:
    """A recording that nobody made decides nothing."""
    judged = scene(under_load=[]).judge("plan_agrees_under_load")
    assert judged.status is Status.ERROR
    assert judged.result.startswith("error: the devices were not looked at")


CPU = plan(tiny())
CPU_LOW, CPU_HIGH = planned_bytes(CPU, CPU.ranks[1]) or (0.0, 0.0)


def test_a_worker_on_the_cpu_is_called_by_its_rank() -> None:
    """Whatever the order; of one that is missing there is nothing to compare."""
    read = {"rank 1": Evidence(CPU_HIGH, "B", "x"), "rank 0": Evidence(CPU_HIGH * 2, "B", "x")}
    assert agreement(CPU, read, Fraction(0.05)).result.endswith("(rank 0)")
    del read["rank 0"]
    assert agreement(CPU, read, Fraction(0.05)).result == (
        "lost: no device was read for it (rank 0)"
    )


@settings(max_examples=50)
@given(
    read=st.lists(st.floats(0, 4 * GIB), min_size=2, max_size=2), tolerance=st.floats(0.001, 0.5)
)
def test_it_is_within_the_range_and_the_tolerance(read: list[float], tolerance: float) -> None:
    """PASS says exactly that: low · (1 − t) ≤ read ≤ high · (1 + t), for each rank."""
    within = [CPU_LOW * (1 - tolerance) <= value <= CPU_HIGH * (1 + tolerance) for value in read]
    found = {f"rank {rank}": Evidence(value, "B", "x") for rank, value in enumerate(read)}
    judged = agreement(CPU, found, Fraction(tolerance))
    assert (judged.status is Status.PASS) == all(within)
