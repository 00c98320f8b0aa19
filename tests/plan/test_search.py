"""The space of strategies: complete, ranked, and honest about what it can't tell apart."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan import plan, requirements
from pytest_llmdeploy.plan.search import Alternative, alternatives, declared
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import Fraction
from tests.plan.deployments import CONFIG, made, tiny, with_config

STEADY: dict[str, Any] = {
    "name": "steady",
    "input_tokens": 1024,
    "output_tokens": 128,
    "rate": "2/s",
    "require": {"tpot": {"p50": "50ms"}},
}


def searched(**changes: Any) -> tuple[Alternative, ...]:
    return alternatives(made(**{"workloads": [STEADY], **changes}))


def names(found: tuple[Alternative, ...]) -> set[str]:
    return {str(one.parallel) for one in found}


class TestSpace:
    """Every legal strategy is there once."""

    def test_all_sizes_of_eight(self) -> None:
        """TP × PP with as many copies as fit, and a reason for every TP that can't be."""
        found = searched()
        assert {
            "TP 1 × PP 1 × DP 8",
            "TP 2 × PP 2 × DP 2",
            "TP 4 × PP 2 × DP 1",
            "TP 8 × PP 1 × DP 1",
            "TP 1 × PP 3 × DP 2",
            "TP 3 × PP 1 × DP 1",
        } <= names(found)
        refused = next(one for one in found if one.parallel.tensor == 3)
        assert "64 attention heads are not divisible by 3" in refused.reasons[0]

    def test_nothing_is_there_twice(self) -> None:
        """Each strategy is considered once, the declared one included."""
        found = searched(parallel={"tensor": 4, "pipeline": 2})
        dumped = [one.parallel.model_dump_json() for one in found]
        assert len(dumped) == len(set(dumped))
        assert sum(one.declared for one in found) == 1

    def test_the_declared_one_is_there_however_odd(self) -> None:
        """Layers by hand and idle devices are ranked like any other."""
        found = searched(parallel={"tensor": 4, "pipeline": 2, "layers": [30, 50]})
        own = declared(found)
        assert own is not None
        assert own.parallel.layers == (30, 50)
        assert own.place is not None
        assert own.place > 1

    def test_stages_that_weigh_the_same(self) -> None:
        """The head weighs a few layers: a split that takes them off the last stage is tried."""
        splits = {one.parallel.layers for one in searched() if one.parallel.pipeline == 4}
        uneven = next(layers for layers in splits if layers)
        assert sum(uneven) == 80
        assert uneven[-1] < 20

    def test_experts(self, tmp_path: Any) -> None:
        """A model with experts is tried with expert parallelism and without."""
        moe = {
            **CONFIG,
            "model_type": "mixtral",
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }
        found = alternatives(with_config(tmp_path / "config.json", moe, workloads=[STEADY]))
        assert {one.parallel.expert for one in found if one.feasible} == {True, False}

    def test_what_does_not_fit_says_so(self) -> None:
        """70 billion parameters do not fit into one device."""
        alone = next(one for one in searched() if str(one.parallel) == "TP 1 × PP 1 × DP 8")
        assert not alone.feasible
        assert "weights" in alone.reasons[0]

    def test_what_does_not_hold_the_sequences_says_so(self) -> None:
        """The declared concurrency is required of every strategy."""
        wanted = {"kv_cache": {"concurrent_sequences": 128, "tokens_per_sequence": 8192}}
        found = searched(require=wanted)
        small = next(one for one in found if str(one.parallel) == "TP 1 × PP 3 × DP 2")
        assert small.reasons[0].startswith("the KV cache holds ")

    def test_a_model_that_is_not_known(self) -> None:
        """Nothing to search."""
        assert searched(model={"id": "unknown/model"}) == ()

    def test_a_device_whose_speed_is_not_known(self) -> None:
        """What is feasible is told, and nothing is ranked."""
        found = alternatives(tiny())
        assert any(one.feasible for one in found)
        assert {one.place for one in found} == {None}


class TestRanking:
    """The best comes first."""

    def test_in_order(self) -> None:
        """Places count up, regret with them, and only those within the limits come first."""
        ranked = [one for one in searched() if one.place]
        assert [one.place for one in ranked] == list(range(1, len(ranked) + 1))
        kept = [one.meets_limits for one in ranked]
        assert kept == sorted(kept, reverse=True)
        regrets = [one.regret or 0 for one in ranked if one.meets_limits]
        assert regrets == sorted(regrets)
        assert regrets[0] == 0

    def test_why_the_others_lost(self) -> None:
        """Each of them has a reason."""
        assert all(one.reasons for one in searched() if one.place != 1)

    def test_a_limit_that_only_many_devices_keep(self) -> None:
        """With a tight TPOT, a wide tensor group wins."""
        tight = {**STEADY, "rate": "1/s", "require": {"tpot": {"p50": "16ms"}}}
        best = searched(workloads=[tight])[0]
        assert best.parallel == Parallel(tensor=8)


class TestStrategy:
    """The check: PASS inside the tolerance, FAIL only when beaten beyond the model's error."""

    def judged(self, within: float, **changes: Any) -> tuple[Status, str]:
        spec: Spec = made(**{"workloads": [STEADY], **changes})
        found = requirements.strategy(plan(spec), Fraction(within))
        return found.status, found.result

    def test_the_best(self) -> None:
        """The best strategy passes with no tolerance at all."""
        best = searched()[0].parallel
        status, result = self.judged(0.0, parallel=best.model_dump())
        assert status is Status.PASS
        assert result.startswith("best of ")

    def test_far_beaten(self) -> None:
        """Two of eight devices at work: three quarters are lost, no error explains that."""
        parallel = {"tensor": 2, "pipeline": 1}
        fp8 = {"id": "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "dtype": "bfloat16"}
        status, result = self.judged(0.1, parallel=parallel, model=fp8)
        assert status is Status.FAIL
        assert " less than " in result

    def test_beaten_by_less_than_the_error(self) -> None:
        """A difference that the model can't tell is not decided."""
        found = searched()
        close = next(one for one in found if one.place and 0.01 < (one.regret or 0) < 0.3)
        status, _ = self.judged(0.0, parallel=close.parallel.model_dump())
        assert status is Status.INCONCLUSIVE

    def test_a_plan_that_cannot_work(self) -> None:
        """It has no place, and says why."""
        status, result = self.judged(0.1, parallel={"tensor": 3})
        assert status is Status.ERROR
        assert "not divisible" in result


@pytest.mark.parametrize(
    ("devices", "nodes", "seconds"), [(8, 1, 0.5), (8, 128, 10.0)], ids=["8", "1024"]
)
def test_it_is_quick(devices: int, nodes: int, seconds: float) -> None:
    """Generous bounds for a busy machine; benchmarks/plan has the figures."""
    spec = made(
        model={"id": "meta-llama/Meta-Llama-3.1-405B", "dtype": "bfloat16"},
        hardware={"devices_per_node": devices, "nodes": nodes},
        workloads=[STEADY],
    )
    began = time.perf_counter()
    assert alternatives(spec)
    assert time.perf_counter() - began < seconds
