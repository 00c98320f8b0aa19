"""Repairs: each makes every plan check pass, and what has none says how close it gets."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.repair import Change, Repairs, changed, repairs
from pytest_llmdeploy.plan.requirements import judgements
from pytest_llmdeploy.spec import Parallel, Spec
from tests.plan.deployments import made, tiny

STEADY: dict[str, Any] = {
    "name": "steady",
    "input_tokens": 1024,
    "output_tokens": 128,
    "rate": "8/s",
    "max_duration": "30s",
    "require": {"ttft": {"p99": "1s"}},
}


def holds(sequences: int) -> dict[str, Any]:
    return {"kv_cache": {"concurrent_sequences": sequences, "tokens_per_sequence": 8192}}


def verified(spec: Spec) -> Repairs:
    """The repairs of a spec, each planned again here."""
    found = repairs(spec)
    for repair in found.repairs:
        mended = changed(spec, repair.changes)
        judged = judgements(mended, plan(mended))
        assert {judgement.status for judgement in judged.values()} == {Status.PASS}, repair
    return found


def keys(found: Repairs) -> list[tuple[str, ...]]:
    return [tuple(change.key for change in repair.changes) for repair in found.repairs]


def test_nothing_to_mend() -> None:
    """A plan that passes needs no repair."""
    assert repairs(made()) == Repairs(needed=False)


def test_a_width_that_does_not_divide() -> None:
    """TP 6 is mended by TP 8 alone."""
    found = verified(made(parallel={"tensor": 6}, require={"devices": 8}))
    assert ("parallel.tensor",) in keys(found)
    change = found.repairs[keys(found).index(("parallel.tensor",))].changes[0]
    assert (change.value, change.was) == (8, 6)


def test_a_cache_that_is_too_small() -> None:
    """More utilization, or an FP8 cache: nearest value first."""
    found = verified(made(require=holds(170)))
    assert ("serve.gpu_memory_utilization",) in keys(found)
    assert ("serve.kv_cache_dtype",) in keys(found)
    raised = found.repairs[keys(found).index(("serve.gpu_memory_utilization",))].changes[0]
    less = Change(raised.key, raised.value - 0.01, raised.was)
    spec = changed(made(require=holds(170)), [less])
    assert judgements(spec, plan(spec))["kv_cache"].status is not Status.PASS


def test_two_faults_take_two_keys() -> None:
    """A width and a duration, each the smallest change."""
    spec = made(parallel={"tensor": 6}, require={"devices": 8}, workloads=[STEADY])
    found = verified(spec)
    assert ("workloads[0].max_duration", "parallel.tensor") in [
        tuple(sorted(pair, reverse=True)) for pair in keys(found)
    ]


def test_what_is_impossible() -> None:
    """Ten thousand sequences do not fit, and the closest is named with its change."""
    found = repairs(made(require=holds(10_000)))
    assert found.repairs == ()
    (impossible,) = found.impossible
    assert impossible.requirement == "kv_cache"
    assert impossible.wanted == "10,000 × 8,192 tokens"
    assert " with " in impossible.closest


def test_a_poor_strategy() -> None:
    """A plan whose only fault is its strategy is mended by a better one."""
    spec = made(
        parallel={"tensor": 4, "pipeline": 2, "layers": [20, 60]},
        workloads=[{**STEADY, "max_duration": "5min"}],
        require={"strategy": {"within": "10%"}},
    )
    found = verified(spec)
    assert ("parallel",) in keys(found)
    assert found.repairs[0].changes[0].value == Parallel(tensor=4, data=2)


def test_a_cache_on_the_cpu() -> None:
    """There the size of the cache is a key."""
    wanted = {"concurrent_sequences": 300, "tokens_per_sequence": 512}
    found = verified(tiny(require={"kv_cache": wanted}))
    (change,) = found.repairs[keys(found).index(("serve.kv_cache_memory_bytes",))].changes
    assert change.value == 512 * 2**20


def test_the_cpu_has_no_gpu_flags() -> None:
    """What only a GPU knows is not suggested for the CPU."""
    found = repairs(tiny(require={"memory": {"max_utilization": "1%"}}))
    assert not {key for pair in keys(found) for key in pair} & {
        "model.quantization",
        "serve.gpu_memory_utilization",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("parallel.tensor", 4), ("workloads[0].seed", 7), ("serve.max_num_seqs", 1)],
)
def test_changed(key: str, value: Any) -> None:
    """Only the key is another, and the spec remains what it was."""
    spec = made(workloads=[STEADY])
    other = changed(spec, [Change(key, value, None)])
    assert spec == made(workloads=[STEADY])
    assert other != spec
    assert changed(other, [Change(key, spec_value(spec, key), None)]) == spec


def spec_value(spec: Spec, key: str) -> Any:
    if key.startswith("workloads"):
        return spec.workloads[0].seed
    section, name = key.split(".")
    return getattr(getattr(spec, section), name)


def test_what_nobody_has_said_is_no_change() -> None:
    """Without the model's shape no other strategy is looked for, and none is called impossible."""
    found = repairs(made(model={"id": "unknown/model"}))
    assert (found.needed, found.repairs, found.impossible) == (True, (), ())
