"""`plan()` is total: for every valid spec there is a plan, and it says what it does not know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.plan import Plan, plan, requirements
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import Bytes, Fraction
from pytest_llmdeploy.verdict import Rule
from tests.plan.deployments import LLAMA_70B, made, tiny, with_config
from tests.specs import TINY

BYTES = ("weights_bytes", "kv_bytes_per_token", "activation_bytes")
SMALL = st.integers(1, 6)
DEVICES = st.sampled_from(
    ["cpu", "H100-SXM-80GB", "L40S-48GB", {"name": "own", "memory": "24GiB"}, {"name": "cpu"}]
)
MODELS = st.sampled_from([LLAMA_70B["model"], TINY["model"], {"id": "unknown/model"}])
MAYBE = st.none() | st.integers(1, 20_000)
SERVE = st.fixed_dictionaries(
    {
        "max_model_len": MAYBE,
        "max_num_batched_tokens": MAYBE,
        "max_num_seqs": MAYBE,
        "gpu_memory_utilization": st.floats(0, 1),
        "kv_cache_memory_bytes": st.none() | st.integers(0, 2**40),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8", "bfloat16", "something"]),
        "block_size": st.none() | st.sampled_from([1, 16, 128]),
        "enable_chunked_prefill": st.none() | st.booleans(),
    }
)
PARALLEL = st.fixed_dictionaries(
    {
        "tensor": SMALL,
        "pipeline": SMALL,
        "data": st.integers(1, 3),
        "prefill_context": st.integers(1, 2),
        "decode_context": st.integers(1, 4),
        "expert": st.booleans(),
        "layers": st.none() | st.lists(st.integers(-2, 90), max_size=4),
    }
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Valid specs, most of which can't work."""
    hardware = {"device": draw(DEVICES), "devices_per_node": draw(SMALL), "nodes": draw(SMALL)}
    sections = {"parallel": draw(PARALLEL), "serve": draw(SERVE), "model": draw(MODELS)}
    return Spec.model_validate({"version": 1, "hardware": hardware, **sections})


@settings(deadline=None, max_examples=60)
@given(specs())
def test_plan_is_total(spec: Spec) -> None:
    """Whatever is asked for, the plan has one rank for each device, and bytes unless it says why
    it has none.
    """
    found = plan(spec)
    assert len(found.ranks) == found.devices == spec.parallel.devices
    sized = found.is_feasible and not found.unknown
    for rank in found.ranks:
        assert [getattr(rank, name) is not None for name in BYTES] == [sized] * len(BYTES)
        assert (rank.weights_bytes or 0) >= 0
        assert (rank.kv_blocks or 0) >= 0
    assert bool(found.refusal) is not found.is_feasible


@settings(deadline=None, max_examples=60)
@given(specs())
def test_predicates_are_total(spec: Spec) -> None:
    """Every predicate has an answer for every plan, and none is green on a plan that can't be."""
    found = plan(spec)
    answers = judgements(found, spec)
    assert all(answer.result and answer.requirement for answer in answers)
    if found.unknown or found.violations:
        assert requirements.feasible(found).status in {Status.ERROR, Status.FAIL}
        memory = (
            requirements.memory_utilization(found, spec, Fraction(1)),
            requirements.memory_headroom(found, Bytes(0)),
        )
        assert {answer.status for answer in memory} == {Status.ERROR}


@settings(deadline=None, max_examples=60)
@given(specs())
def test_no_report_of_a_plan_has_infinities(spec: Spec) -> None:
    """Every figure of the report's `plan` is finite or null."""
    assert all(math.isfinite(value) for value in numbers(plan(spec).to_json()))


def numbers(value: Any) -> list[float]:
    """All numbers within plain data."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def judgements(found: Plan, spec: Spec) -> tuple[Judgement, ...]:
    """What the predicates say of a plan."""
    return (
        requirements.feasible(found),
        requirements.device_count(found, spec, 8),
        requirements.memory_utilization(found, spec, Fraction(1)),
        requirements.memory_headroom(found, Bytes(0)),
        requirements.kv_capacity(found, spec, 1, None),
        requirements.layer_balance(found, Fraction(1)),
    )


class TestUnknown:
    """A model whose shape is not known has a plan without bytes, and is never green."""

    def test_it_is_said(self) -> None:
        """The plan says which model, and what to do."""
        found = plan(made(model={"id": "meta-llama/Meta-Llama-3-70B-Instuct"}))
        assert "Meta-Llama-3-70B-Instuct" in found.unknown
        assert "set model.config" in found.unknown
        assert "did you mean 'meta-llama/Meta-Llama-3-70B-Instruct'?" in found.unknown

    def test_every_judgement_is_an_error(self) -> None:
        """What depends on the shape is ERROR, with that text."""
        spec = made(model={"id": "unknown/model"})
        found = plan(spec)
        assert found.is_feasible
        answers = [a for a in judgements(found, spec) if a.requirement != "8 = TP 8 × PP 1 × DP 1"]
        assert {(a.status, found.unknown in a.result) for a in answers} == {(Status.ERROR, True)}

    def test_what_needs_no_shape_is_still_judged(self) -> None:
        """Too few devices is a violation for any model."""
        found = plan(made(model={"id": "unknown/model"}, parallel={"data": 2}))
        assert [violation.rule for violation in found.violations] == ["devices"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "is not a mapping")],
    )
    def test_a_config_that_cannot_be_read(
        self, tmp_path: Path, text: str | None, reason: str
    ) -> None:
        """A config.json that is missing or broken is no crash."""
        spec = with_config(tmp_path / "config.json", {})
        path = tmp_path / "config.json"
        path.unlink() if text is None else path.write_text(text)
        assert plan(spec).unknown.endswith(reason) or reason in plan(spec).unknown


class TestPredicates:
    """Each predicate just passes, just fails, and says what it found."""

    @pytest.mark.parametrize(
        ("sequences", "tokens", "status"),
        [
            (256, 512, Status.PASS),
            (257, 512, Status.FAIL),
            (256, None, Status.PASS),
            (204, 513, Status.PASS),
            (205, 513, Status.FAIL),
        ],
    )
    def test_kv_capacity(self, sequences: int, tokens: int | None, status: Status) -> None:
        """Where the cache is known exactly, one sequence more than it holds is too many."""
        found = requirements.kv_capacity(plan(tiny()), tiny(), sequences, tokens)
        assert found.status is status
        held = 256 if tokens != 513 else 204
        assert found.result == f"{held} × {tokens or 512}"
        assert (found.bound, found.limit, found.unit) == (held, sequences, "sequences")

    def test_kv_capacity_of_copies(self) -> None:
        """The caches of all data-parallel copies together hold the sequences."""
        two = tiny(parallel={"tensor": 1, "data": 2})
        assert requirements.kv_capacity(plan(two), two, 256, 512).status is Status.PASS
        assert requirements.kv_capacity(plan(two), two, 257, 512).status is Status.FAIL

    def test_kv_capacity_between(self) -> None:
        """What only the larger of two estimates holds is not decided."""
        found = plan(made())
        assert found.kv_cache is not None
        low, high = found.kv_cache.sequences(8192)
        assert low < high
        wanted = {low: Status.PASS, low + 1: Status.INCONCLUSIVE, high + 1: Status.FAIL}
        judged = {n: requirements.kv_capacity(found, made(), n, 8192) for n in wanted}
        assert {n: judgement.status for n, judgement in judged.items()} == wanted
        assert judged[low + 1].result == f"{low} to {high} × 8,192"

    @pytest.mark.parametrize(
        ("required", "available", "status"),
        [(8, 8, Status.PASS), (8, 16, Status.PASS), (16, 16, Status.FAIL), (8, 4, Status.FAIL)],
    )
    def test_device_count(self, required: int, available: int, status: Status) -> None:
        """Exactly the required devices are used, and the hardware has them."""
        spec = made(hardware={"devices_per_node": available})
        found = requirements.device_count(plan(spec), spec, required)
        assert found.status is status
        assert found.result == f"8 used, {available} × H100-SXM-80GB"

    @pytest.mark.parametrize(("limit", "status"), [("85%", Status.PASS), ("84%", Status.FAIL)])
    def test_memory_utilization(self, limit: str, status: Status) -> None:
        """85 % of what CUDA shows is 84.5 % of the device."""
        spec = made()
        found = requirements.memory_utilization(plan(spec), spec, Fraction.parse(limit))
        assert (found.status, found.result) == (status, "84.5 % (rank 0)")

    @pytest.mark.parametrize(("limit", "status"), [("12GiB", Status.PASS), ("13GiB", Status.FAIL)])
    def test_memory_headroom(self, limit: str, status: Status) -> None:
        """What gpu_memory_utilization leaves is the headroom."""
        found = requirements.memory_headroom(plan(made()), Bytes.parse(limit))
        assert (found.status, found.result) == (status, "12.34 GiB (rank 0)")

    def test_memory_that_nobody_declared(self) -> None:
        """A device without a size can't pass a limit on it."""
        spec = tiny(hardware={"device": {"name": "cpu", "memory": None}})
        found = requirements.memory_headroom(plan(spec), Bytes(0))
        assert found.status is Status.ERROR
        assert "hardware.device.memory" in found.result

    @pytest.mark.parametrize(
        ("layers", "tolerance", "status"),
        [
            (None, "0%", Status.PASS),
            ([41, 39], "2.5%", Status.PASS),
            ([41, 39], "2.4%", Status.FAIL),
        ],
    )
    def test_layer_balance(self, layers: list[int] | None, tolerance: str, status: Status) -> None:
        """One layer more than the mean of 40 is 2.5 %."""
        spec = made(parallel={"tensor": 4, "pipeline": 2, "layers": layers})
        found = requirements.layer_balance(plan(spec), Fraction.parse(tolerance))
        assert found.status is status

    def test_feasible_counts_the_others(self) -> None:
        """The first violation is shown, and how many more there are."""
        plan_ = plan(made(parallel={"tensor": 3, "expert": True}))
        found = requirements.feasible(plan_)
        more = len(plan_.violations) - 1
        assert found.status is Status.FAIL
        assert found.result == f"{plan_.violations[0]} (and {more} more)"
        assert len(found.evidence["violations"]) == more + 1


class TestDecidable:
    """Whether a workload can send enough requests to pass its percentiles."""

    def decide(self, require: dict[str, Any], duration: str, **more: Any) -> Judgement:
        """The judgement on a workload of 10 requests a second; `more` are keys of the spec."""
        workload = {
            "name": "steady",
            "input_tokens": 16,
            "output_tokens": 4,
            "rate": "10/s",
            "warmup": "2s",
            "max_duration": duration,
            "require": require,
        }
        spec = tiny(workloads=[workload], **more)
        return requirements.decidable(spec, spec.workloads[0])

    def test_the_limit_is_exact(self) -> None:
        """The duration that the hint names is enough, and half a second less is not."""
        short = self.decide({"ttft": {"p99": "1s"}}, "10s")
        needed = int(short.limit or 0)
        assert short.status is Status.FAIL
        assert short.result == "80 in 10 s"
        assert short.requirement == f"≥ {needed} requests for p99"
        assert short.evidence["shortest"] in short.hint
        seconds = needed / 10 + 2
        just = self.decide({"ttft": {"p99": "1s"}}, f"{seconds}s")
        assert just.status is Status.PASS
        less = self.decide({"ttft": {"p99": "1s"}}, f"{seconds - 0.5}s")
        assert less.status is Status.FAIL

    def test_the_hardest_percentile_counts(self) -> None:
        """A p50 beside a p99 asks for no more and no fewer requests."""
        alone = self.decide({"ttft": {"p99": "1s"}}, "10s")
        both = self.decide({"ttft": {"p99": "1s"}, "tpot": {"p50": "1s"}}, "10s")
        assert alone.limit == both.limit
        assert (self.decide({"tpot": {"p50": "1s"}}, "10s").limit or 0) < (both.limit or 0)

    def test_a_regression_takes_more_than_a_limit(self) -> None:
        """Half of its error is the baseline's."""
        limit = self.decide({"e2el": {"p99": "1s"}}, "10s")
        both = self.decide({"regression": {"e2el": {"p99": "10%", "p50": "5%"}}}, "10s")
        assert both.limit == Rule(0.99, alpha=0.025, beta=0.025).requests_to_pass()
        assert both.requirement.endswith(" requests for p99 regression")
        assert (both.limit or 0) > (limit.limit or 0)

    def test_more_confidence_takes_more(self) -> None:
        """To be wrong less often takes more requests."""
        usual = self.decide({"ttft": {"p99": "1s"}}, "10s")
        surer = self.decide({"ttft": {"p99": "1s"}}, "10s", confidence="99%")
        assert (surer.limit or 0) > (usual.limit or 0)

    def test_nothing_to_decide(self) -> None:
        """A workload without percentiles needs no number of requests."""
        found = self.decide({"errors": "0%"}, "3s")
        assert (found.status, found.result) == (Status.PASS, "10 in 3,000 ms")

    def test_a_warmup_that_takes_it_all(self) -> None:
        """When the warm-up fills the duration, nothing is measured."""
        assert self.decide({"ttft": {"p50": "1s"}}, "1s").measured == 0

    def test_no_more_may_be_sent(self) -> None:
        """Where the cap on requests is too low, longer traffic would not help."""
        attach = {"url": "http://vllm", "max_requests": 100}
        found = self.decide({"ttft": {"p99": "1s"}}, "10min", attach=attach)
        assert (found.status, found.result) == (Status.FAIL, "100 may be sent")
        assert found.hint == f"set attach.max_requests to {found.limit} or more"
        enough = {**attach, "max_requests": found.limit}
        assert self.decide({"ttft": {"p99": "1s"}}, "10min", attach=enough).status is Status.PASS
