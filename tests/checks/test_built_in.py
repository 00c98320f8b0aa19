"""Every built-in check: a scene in which it passes, and one in which it fails, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pytest_llmdeploy.checks import Registry
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load.backlog import Service
from pytest_llmdeploy.load.floor import Floor
from pytest_llmdeploy.load.validity import Lateness
from pytest_llmdeploy.spec.require import Require
from pytest_llmdeploy.spec.workload import WorkloadRequire
from tests.checks.scenes import STEADY, Scene, failed, gpus, nvlinks, sample
from tests.checks.sharing import COPIES, EVEN, QWEN, SIX, STARVED, engines
from tests.checks.test_devices import DEVICES
from tests.checks.test_dry_run import ASKED
from tests.checks.test_regression import REGRESSIONS, UNCOMPARED
from tests.checks.test_remote_code import DISCLOSED
from tests.test_elsewhere import ELSEWHERE

AGREES = {"require": {"plan_agrees": "5%"}}
TP3 = Scene(spec={"parallel": {"tensor": 3}})
SMALL_CACHE = {"kv_cache_size_tokens": str(127 * 8192 + 8176), "block_size": "16"}
PP2 = {"tensor": 4, "pipeline": 2}
PROMPT = {**STEADY["require"], "goodput": {"ttft": "1s", "share": "90%"}}
QUICK = {"workloads": [{**STEADY, "require": PROMPT}]}
SLOW, STALLED = sample(ttft=1500), sample(gaps=(20, 1500, 20))


def limited(metric: str, limit: str) -> dict[str, Any]:
    """The workload with a limit that no device of today reaches."""
    return {**STEADY, "require": {**STEADY["require"], metric: {"p50": limit}}}


# Check: the scene in which it passes, what it finds; the one in which it fails, what it finds.
CASES: dict[str, tuple[Scene, str, Scene, str]] = {
    "feasible": (Scene(), "no rule is broken", TP3, "TP 3: 64 attention heads are not divisible"),
    "device_count": (
        Scene(), "8 used, 8 × H100-SXM-80GB",
        Scene(spec={"parallel": {"tensor": 4}}), "4 used, 8 × H100-SXM-80GB",
    ),
    "deployable": (
        Scene(), "nothing is missing",
        Scene(spec={"model": {"id": "unknown/model"}}), "the model's shape (model.config)",
    ),
    "ttft_in_reach": (
        Scene(), " ms ± ",
        Scene(spec={"workloads": [limited("ttft", "10ms")]}), " ms ± ",
    ),
    "tpot_in_reach": (
        Scene(), " ms ± ",
        Scene(spec={"workloads": [limited("tpot", "5ms")]}), " ms ± ",
    ),
    "strategy": (
        Scene(), " of ",
        Scene(spec={"hardware": {"devices_per_node": 64}}), " less than ",
    ),
    "decidable": (
        Scene(), "4,784 in 600 s",
        Scene(spec={"workloads": [{**STEADY, "max_duration": "2100ms"}]}), "0 in 2,100 ms",
    ),
    "devices_present": (Scene(), "8 of 8", Scene(present=gpus((1,) * 7)), "7 of 7"),
    "ranks_up": (Scene(), "8 of 8 ranks up", Scene(devices=gpus((64,) * 7)), "7 of 8 ranks up"),
    "planned_memory_utilization": (
        Scene(), "84.5 % (rank 0)",
        Scene(spec={"serve": {"gpu_memory_utilization": 0.9}}), "89.47 % (rank 0)",
    ),
    "planned_memory_headroom": (
        Scene(), "12.34 GiB (rank 0)",
        Scene(spec={"serve": {"gpu_memory_utilization": 0.9}}), "8.385 GiB (rank 0)",
    ),
    "memory_utilization": (
        Scene(), "80 % (GPU 0)", Scene(devices=gpus((64,) * 7 + (70,))), "87.5 % (GPU 7)",
    ),
    "memory_headroom": (
        Scene(), "16 GiB (GPU 0)", Scene(devices=gpus((64,) * 7 + (70,))), "10 GiB (GPU 7)",
    ),
    "plan_agrees": (
        Scene(spec=AGREES, devices=gpus((67,) * 8)), "67 GiB, planned 6",
        Scene(spec=AGREES, devices=gpus((67,) * 7 + (78,))), "78 GiB, planned 6",
    ),
    "plan_agrees_under_load": (
        Scene(spec=AGREES, devices=gpus((67,) * 8)), "67 GiB, planned 6",
        Scene(spec=AGREES, under_load=[gpus((67,) * 8), gpus((78,) * 8)]), "78 GiB, planned 6",
    ),
    "planned_kv_capacity": (
        Scene(), "× 8,192",
        Scene(spec={"serve": {"kv_cache_memory_bytes": "2GiB"}}), "6 × 8,192",
    ),
    "kv_capacity": (
        Scene(), "160 × 8,192", Scene(server={"cache": SMALL_CACHE}), "127 × 8,192",
    ),
    "layer_balance": (
        Scene(), "0 % (stage 0)",
        Scene(spec={"parallel": {**PP2, "layers": [35, 45]}}), "12.5 % (stage 0)",
    ),
    "memory_balance": (
        Scene(), "0 % (GPU 0)", Scene(devices=gpus((64,) * 7 + (32,))), "46.67 % (GPU 7)",
    ),
    "experts_balance": (
        QWEN, "0 % (rank 0 has 32;",
        replace(QWEN, spec={**QWEN.spec, **SIX}), "3.125 % (rank 0 has 22;",
    ),
    "request_balance": (
        Scene(spec=COPIES, engines=engines(EVEN)), "450, 450 requests",
        Scene(spec=COPIES, engines=engines(STARVED)), "900, 0 requests",
    ),
    "token_balance": (
        Scene(spec=COPIES, engines=engines(EVEN)), "7,200, 7,200 tokens",
        Scene(spec=COPIES, engines=engines(STARVED)), "14,400, 0 tokens",
    ),
    "interconnect": (
        Scene(), "28 of 28",
        Scene(nvlink=nvlinks(missing=["GPU 2 – GPU 5"])), "27 of 28, not GPU 2 – GPU 5",
    ),
    "model_served": (
        Scene(), "meta-llama/Meta-Llama-3-70B-Instruct",
        Scene(server={"model": {"id": "another/model"}}), "another/model",
    ),
    "engine_version": (Scene(), "0.32.0", Scene(server={"version": "0.29.1"}), "0.29.1"),
    "server_limits": (
        Scene(), "7 match, 6 cannot be seen",
        Scene(server={"fingerprint": "vllm-0.32.0-tp4-pp2-0a1b2c3d"}),
        "tp is 4, not 8, pp is 2, not 1; 5 match, 6 cannot be seen",
    ),
    "ttft": (Scene(), "≤ 200 ms", Scene(samples=(SLOW,) * 200), "≥ 1,500 ms"),
    "tpot": (Scene(), "≤ 20 ms", Scene(samples=(sample(gaps=(1500,) * 3),) * 200), "≥ 1,500 ms"),
    "itl": (Scene(), "≤ 20 ms", Scene(samples=(sample(gaps=(1500,) * 3),) * 200), "≥ 1,500 ms"),
    "goodput": (Scene(), "0 of 100 missed", Scene(samples=(SLOW,) * 200), "of 100 missed"),
    "e2el": (Scene(), "≤ 260 ms", Scene(samples=(SLOW,) * 200), "≥ 1,560 ms"),
    "stall": (Scene(), "≤ 20 ms", Scene(samples=(STALLED,) * 200), "≥ 1,500 ms"),
    "errors": (Scene(), "0 %", Scene(samples=(*(sample(),) * 97, *(failed(),) * 3)), "3 %"),
    "keeps_up": (
        Scene(), "100 % served",
        Scene(service=Service(0.9, 0.88, 0.92, 1.0, 0.8, 0.1)), "90 % served",
    ),
    "concurrent_sequences": (Scene(running_peak=32), "32 sequences", Scene(running_peak=31), "31"),
    "preemptions": (Scene(preempted=2), "2", Scene(preempted=3), "3"),
    "capacity": (
        Scene(), "all 9 hold",
        Scene(at_capacity=(SLOW,) * 200), "TTFT p50 ≥ 1,500 ms",
    ),
    "clean_stop": (
        Scene(), "none left after 1.5 s", Scene(left=["VLLM::Worker_TP0 (4711)"]), "4711",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_passes(name: str) -> None:
    """With everything as declared the check passes, says what it found and where."""
    scene, result, _, _ = CASES[name]
    found = scene.judge(name)
    assert found.status is Status.PASS
    assert result in found.result
    assert found.evidence["source"]
    assert found.hint == ""


@pytest.mark.parametrize("name", CASES)
def test_fails(name: str) -> None:
    """With one thing wrong it fails for that reason, and says what to change."""
    _, _, scene, result = CASES[name]
    found = scene.judge(name)
    assert found.status is Status.FAIL
    assert result in found.result
    assert found.requirement
    assert found.hint


def test_every_check_is_tried() -> None:
    """No built-in check is without a scene in which it passes and one in which it fails."""
    tried = {*CASES, *DEVICES, *ELSEWHERE, *ASKED, *DISCLOSED, *REGRESSIONS}
    assert {check.name for check in Registry()} == tried


# Check, the scene, what it says: not enough, or not to be had. Never green.
UNKNOWN: list[tuple[str, Scene, Status, str]] = [
    ("ranks_up", Scene(devices=gpus((), problem="no permission")), Status.ERROR, "no permission"),
    ("memory_utilization", Scene(devices=gpus((64, None))), Status.ERROR, "lost: GPU is lost"),
    ("memory_headroom", Scene(devices=gpus(())), Status.ERROR, "nothing could be read"),
    ("memory_balance", Scene(devices=gpus((), problem="no permission")), Status.ERROR, "no perm"),
    ("memory_balance", Scene(devices=gpus((64, None))), Status.ERROR, "lost: GPU is lost"),
    ("kv_capacity", Scene(server={"cache": {}}), Status.ERROR, "unsupported"),
    ("interconnect", Scene(nvlink={}), Status.ERROR, "nothing could be read"),
    ("ttft", Scene(samples=()), Status.ERROR, "no request was measured"),
    ("ttft", Scene(samples=(sample(),) * 3), Status.INCONCLUSIVE, "0 of 3 over"),
    ("ttft", Scene(interrupted="the server died"), Status.ERROR, "the server died"),
    ("ttft", Scene(invalid=["requests were sent late"]), Status.INVALID, "were sent late"),
    ("ttft", Scene(late=Lateness(["late"], 50)), Status.INVALID, "late"),
    ("ttft", Scene(samples=(SLOW,) * 200, late=Lateness(["late"], 600)), Status.INVALID, "late"),
    ("ttft", Scene(floor=Floor(400, 1, 50)), Status.INVALID, "below 1,200 ms"),
    ("goodput", Scene(invalid=["requests were sent late"]), Status.INVALID, "were sent late"),
    ("goodput", Scene(late=Lateness(["late"], 50)), Status.INVALID, "late"),
    ("goodput", Scene(floor=Floor(400, 1, 50)), Status.INVALID, "a TTFT below 1,200 ms"),
    ("goodput", Scene(samples=()), Status.ERROR, "no request was measured"),
    ("keeps_up", Scene(invalid=["requests were sent late"]), Status.INVALID, "were sent late"),
    ("errors", Scene(samples=()), Status.ERROR, "no request was measured"),
    ("keeps_up", Scene(service=None), Status.ERROR, "no request was measured"),
    ("keeps_up", Scene(service=Service(0.98, 0.9, 1, 1, 0, 1)), Status.INCONCLUSIVE, "98 %"),
    ("server_limits", Scene(server={"fingerprint": "", "model": {}, "cache": {}, "version": ""}),
     Status.INCONCLUSIVE, "shows none of them (13 cannot be seen)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scene", "status", "result"), [*UNKNOWN, *UNCOMPARED])
def test_what_is_not_known_is_not_green(
    name: str, scene: Scene, status: Status, result: str
) -> None:
    """What could not be read or decided is said to be so."""
    found = scene.judge(name)
    assert found.status is status
    assert result in found.result


def test_errors_say_what_most_of_them_were() -> None:
    """With the words of one of them, which is the reason more often than not."""
    found = Scene(samples=(*(sample(),) * 90, *(failed(),) * 10)).judge("errors")
    assert found.hint == "10 of 100: http error, HTTP 500"


def test_a_late_client_does_not_excuse_what_it_did_not_cause() -> None:
    """Over the limit by more than the client was ever late: that is the server's doing."""
    scene = Scene(spec=QUICK, samples=(SLOW,) * 200, late=Lateness(["late"], 400))
    found = scene.judge("ttft")
    assert found.status is Status.FAIL
    assert found.bound == pytest.approx(1100)
    assert found.evidence["without_the_clients_part"] == "late"
    assert scene.judge("goodput").status is Status.FAIL


def test_a_limit_below_the_floor_is_not_failed_either() -> None:
    """What the client can't judge, it can't judge on time or late."""
    scene = Scene(spec=QUICK, samples=(SLOW,) * 200, floor=Floor(400, 1, 50))
    for name in ("ttft", "goodput"):
        assert scene.judge(name).status is Status.INVALID
        late = replace(scene, late=Lateness(["late"], 100))
        assert late.judge(name).status is Status.INVALID


def test_a_late_client_may_spoil_the_pace() -> None:
    """Stamps that came late make gaps of any length: nothing is said about tokens."""
    late = Lateness(["late"], 0)
    scene = Scene(samples=(sample(gaps=(1500,) * 3),) * 200, late=late)
    assert {scene.judge(name).status for name in ("tpot", "itl", "stall")} == {Status.INVALID}


def test_failed_requests_are_infinitely_slow() -> None:
    """Requests that fail count against every percentile of latencies."""
    scene = Scene(samples=(failed(),) * 200)
    judged = {
        name: scene.judge(name) for name in ("ttft", "tpot", "itl", "e2el", "stall", "goodput")
    }
    assert {found.status for found in judged.values()} == {Status.FAIL}


def test_stages_are_balanced_apart() -> None:
    """Stages may differ from each other: only devices of the same stage are compared."""
    scene = Scene(
        spec={"parallel": PP2},
        devices=gpus((64,) * 4 + (48,) * 4, stages=(0,) * 4 + (1,) * 4),
    )
    assert scene.judge("memory_balance").status is Status.PASS


def test_the_worst_stage_counts() -> None:
    """A stage that is out of balance is not hidden by one that is not."""
    scene = Scene(
        spec={"parallel": PP2},
        devices=gpus((64,) * 4 + (48, 48, 48, 24), stages=(0,) * 4 + (1,) * 4),
    )
    assert scene.judge("memory_balance").result == "42.86 % (GPU 7)"


def test_no_links_without_a_group() -> None:
    """TP 1 has no pairs, so nothing is asked of the links."""
    scene = Scene(spec={"parallel": {"tensor": 1, "data": 8}}, nvlink={})
    assert scene.judge("interconnect").status is Status.PASS


def test_another_kind_of_gpu() -> None:
    """Eight GPUs of another kind are not the eight that were declared."""
    found = Scene(present=gpus(kind="NVIDIA A100-SXM4-80GB")).judge("devices_present")
    assert (found.status, found.result) == (Status.FAIL, "0 of 8, also NVIDIA A100-SXM4-80GB")


def record_in(annotation: Any) -> type[BaseModel] | None:
    """The record that a field holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := record_in(part))), None)


def keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Every key of a record: of records below, and of limits by percentile."""

    def below(name: str, info: FieldInfo) -> Iterator[str]:
        record = record_in(info.annotation)
        by_percentile = get_origin(info.annotation) is not None and "Percentile" in repr(info)
        if record:
            yield from keys(record, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}" + (".{percentile}" if by_percentile else "")

    for name, info in model.model_fields.items():
        yield from below(name, info)


@pytest.mark.parametrize(
    "key",
    [*keys(Require, ""), *keys(WorkloadRequire, "workloads.{workload}.require.")],
)
def test_every_requirement_is_judged(key: str) -> None:
    """No key that a spec may require is without a check that judges it."""
    claimed = {check.require for check in Registry() if check.require}
    assert key in claimed or key.rpartition(".")[0] in claimed
