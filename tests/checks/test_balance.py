"""The balance of experts, requests and tokens: passed, failed, not decided, and not to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load.engines import Dealt, Engines
from pytest_llmdeploy.spec import SpecError, load_spec
from tests.checks.scenes import STEADY, Scene
from tests.checks.sharing import COPIES, EVEN, QWEN, SIX, STARVED, dealt, engines
from tests.specs import REPOSITORY

both = pytest.mark.parametrize("name", ["request_balance", "token_balance"])


@both
def test_even_engines_pass(name: str) -> None:
    """The row has the bound, the busiest engine, every count and every measure."""
    found = Scene(spec=COPIES, engines=engines(EVEN)).judge(name)
    assert found.status is Status.PASS
    assert found.measured == 0
    assert found.bound is not None
    assert 0 < found.bound < 0.3
    assert found.hint == ""
    for measure in ("S 0 %", "R 0 %", "CV 0 %", "D 0 %", "B 1", "engine 0 the busiest"):
        assert measure in found.result
    assert set(found.evidence["counts"]) == {"engine 0", "engine 1"}


@both
def test_a_starved_engine_fails(name: str) -> None:
    """The busiest is named, and how much it has over the mean."""
    found = Scene(spec=COPIES, engines=engines(STARVED)).judge(name)
    assert found.status is Status.FAIL
    assert found.measured == 1
    assert found.bound is not None
    assert 0.3 < found.bound < 1
    assert found.evidence["busiest"] == "engine 0"
    assert found.evidence["balancedness"] == 0.5
    assert found.evidence["range"] == 2
    assert "routed" in found.hint


@both
def test_too_few_decide_nothing(name: str) -> None:
    """And the hint says about how many it takes when they are shared evenly."""
    found = Scene(spec=COPIES, engines=engines(EVEN[:4])).judge(name)
    assert found.status is Status.INCONCLUSIVE
    assert found.bound is None
    assert "shared evenly it takes about 8" in found.hint


def test_bursts_decide_nothing_as_soon() -> None:
    """A hundred requests to one engine and then a hundred to the other are few bursts."""
    bursts = [dealt(15, 0)] * 7 + [dealt(0, 15)] * 7
    found = Scene(spec=COPIES, engines=engines(bursts)).judge("request_balance")
    assert found.status is Status.INCONCLUSIVE
    assert found.evidence["dispersion"] > 20
    assert "bursts" in found.hint


# What is wrong with the counts, and what is said of it.
UNKNOWN: Mapping[str, tuple[Engines, Status, str]] = {
    "unread": (
        engines(EVEN, problem="error: /metrics could not be read"),
        Status.ERROR,
        "/metrics",
    ),
    "restarted": (engines(EVEN, problem="lost: the counters"), Status.ERROR, "lost"),
    "missing": (engines([dealt(9)], missing=["engine 1"]), Status.FAIL, "1 of 2 engines are there"),
    "alone": (engines([dealt(9)]), Status.ERROR, "one engine has nothing to share"),
    "nothing": (engines([dealt(0, 0)]), Status.ERROR, "were counted"),
    "never read": (Engines(), Status.ERROR, "nothing was sent"),
    "not counted": (engines([Dealt({}, {})]), Status.ERROR, "unsupported: /metrics has no vllm:"),
}


@both
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_not_green(case: str, name: str) -> None:
    """Whatever can't be read or trusted is said to be so."""
    found_engines, status, result = UNKNOWN[case]
    found = Scene(spec=COPIES, engines=found_engines).judge(name)
    assert found.status is status
    assert result in found.result


def test_an_interrupted_run_does_not_pass() -> None:
    """The server died: what it had counted until then is no balance."""
    found = Scene(spec=COPIES, engines=engines(EVEN), interrupted="it died").judge("token_balance")
    assert (found.status, found.result) == (Status.ERROR, "it died")


def test_a_tolerance_that_nothing_exceeds_is_an_error() -> None:
    """The busier of two engines has at most twice the mean."""
    spec = {**COPIES, "require": {"balance": {"requests": "100%"}}}
    found = Scene(spec=spec, engines=engines(STARVED)).judge("request_balance")
    assert found.status is Status.ERROR


def test_many_engines_are_told_in_short() -> None:
    """Their range is in the row, and every one in the evidence."""
    spec = {**COPIES, "parallel": {"tensor": 1, "data": 12}}
    found = Scene(spec=spec, engines=engines([dealt(*(60,) * 12)] * 20)).judge("request_balance")
    assert "1,200 to 1,200 requests" in found.result
    assert len(found.evidence["counts"]) == 12


def test_more_noise_in_the_lengths_takes_more_requests() -> None:
    """Tokens are worth fewer requests where the answers are of very different lengths."""
    uneven = [dealt(8, 7, worth=200.0), dealt(7, 8, worth=200.0)] * 10
    scene = Scene(spec=COPIES, engines=engines(uneven))
    assert scene.judge("token_balance").status is Status.INCONCLUSIVE
    assert scene.judge("request_balance").status is Status.PASS


@pytest.mark.parametrize(
    ("changes", "status", "result"),
    [
        ({}, Status.PASS, "0 % (rank 0 has 32; S 0 %"),
        ({"parallel": {"tensor": 4, "expert": False}}, Status.PASS, "a part of every one"),
        ({"model": {"id": "meta-llama/Meta-Llama-3-70B-Instruct"}}, Status.ERROR, "not planned"),
        (
            {"model": {"id": "meta-llama/Meta-Llama-3-8B-Instruct"},
             "parallel": {"tensor": 4, "expert": False}},
            Status.PASS, "no experts are dealt: the model is dense",
        ),
        ({"model": {"id": "unknown/model"}}, Status.ERROR, "unknown/model"),
        (
            SIX, Status.FAIL, "3.125 % (rank 0 has 22;",
        ),
    ],
)  # fmt: skip
def test_experts(changes: Mapping[str, Any], status: Status, result: str) -> None:
    """128 experts on 4 ranks are even, and on 6 they are not; where none are dealt, it is said."""
    found = replace(QWEN, spec={**QWEN.spec, **changes}).judge("experts_balance")
    assert found.status is status
    assert result in found.result


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("balance: {requests: 5%}", "one engine has nothing to share"),
        ("balance: {tokens: 0%}", "no number of requests shows"),
    ],
)
def test_what_can_not_be_decided_is_refused(text: str, problem: str, tmp_path: Any) -> None:
    """With the line of the key."""
    tiny = (REPOSITORY / "specs" / "tiny-llama-cpu.yaml").read_text()
    path = tmp_path / "spec.yaml"
    before, _, _ = tiny.partition("\nrequire:")
    path.write_text(f"{before}\nrequire:\n  {text}\n")
    with pytest.raises(SpecError, match=problem) as raised:
        load_spec(path)
    assert f"{path}:{before.count(chr(10)) + 3}" in str(raised.value)


def test_without_workloads_nothing_is_shared() -> None:
    """A balance of requests needs some."""
    with pytest.raises(ValueError, match="needs workloads"):
        Scene(spec={**COPIES, "workloads": []}).declared()


@pytest.mark.parametrize(("tolerance", "status"), [("10%", Status.FAIL), ("30%", Status.PASS)])
def test_a_plan_knows_how_many_it_takes(tolerance: str, status: Status) -> None:
    """400 requests decide 30 % between two engines, and not 10 %."""
    steady = {**STEADY, "max_duration": "50s", "require": {"errors": "0%"}}
    spec = {**COPIES, "require": {"balance": {"requests": tolerance}}, "workloads": [steady]}
    found = Scene(spec=spec).judge("decidable")
    assert found.status is status
    closed = {**steady, "name": "closed", "rate": None, "concurrency": 4}
    closed.pop("rate")
    both_loops = replace(Scene(spec=spec), spec={**spec, "workloads": [steady, closed]})
    assert both_loops.judge("decidable").status is Status.PASS


def test_a_cap_on_requests_may_be_too_low_for_a_balance() -> None:
    """Then longer traffic would not help."""
    steady = {**STEADY, "max_duration": "50s", "require": {"errors": "0%"}}
    spec = {**COPIES, "require": {"balance": {"requests": "30%"}}, "workloads": [steady]}
    attach = {"url": "http://vllm", "engines": ["http://a", "http://b"], "max_requests": 40}
    short = Scene(spec={**spec, "attach": attach}).judge("decidable")
    assert short.status is Status.FAIL
    assert short.hint.startswith("set attach.max_requests to ")
