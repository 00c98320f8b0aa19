"""A server that is somebody else's gets no more than it is allowed to: in all, and at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load import Traffic, runner
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Allowance, Target
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Spec, Workload
from tests.load.workloads import MODEL, VOCAB, workload
from tests.standin import Fault, Standin

LIMITS = {"ttft": {"p50": "9s", "p99": "9s"}, "errors": "0%"}
OPEN: dict[str, Any] = {"rate": "400/s", "max_duration": "20s", "require": LIMITS}
CLOSED: dict[str, Any] = {"rate": None, "concurrency": 4, "max_duration": "20s", "require": LIMITS}
Run = Callable[..., Traffic]


@pytest.fixture
def run(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Sends workloads to the stand-in."""
    monkeypatch.setattr(runner, "_DRAIN_SECONDS", 2.0)

    def run(*sent: Workload, **allowed: int) -> Traffic:
        plain = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}}
        spec = Spec.model_validate(plain).model_copy(update={"workloads": sent})
        allowance = Allowance(**allowed)
        target = Target(
            endpoint=Endpoint(standin.url), model=MODEL, vocab=VOCAB, allowance=allowance
        )
        return run_workloads(spec, target)

    return run


@pytest.mark.parametrize("loop", [OPEN, CLOSED], ids=["open", "closed"])
def test_no_request_beyond_the_cap(run: Run, standin: Standin, loop: dict[str, Any]) -> None:
    """It ends there and then: what is not decided says why no more were sent."""
    served = run(workload(name="w", **loop), requests=60)["w"]
    assert len(standin.requests()) == 60
    assert served.capped == "attach.max_requests"
    assert served.to_json()["capped"] == "attach.max_requests"
    assert served.end - served.start < 5
    assert (served.interrupted, served.saved) == ("", "")
    undecided = served.ttft.at("p99").at_most(9000)
    assert undecided.status is Status.INCONCLUSIVE
    assert undecided.hint.endswith("to pass: attach.max_requests ended the traffic")


def test_what_is_decided_by_then_stands(run: Run, standin: Standin) -> None:
    """A census is one of however few: that of a server that answers, and of one that does not."""
    served = run(workload(name="w", **OPEN), requests=60)["w"]
    assert (served.capped, served.errors.at_most(0).status) == (
        "attach.max_requests",
        Status.PASS,
    )
    standin.configure(faults=[Fault("http_500", fraction=0.5)])
    served = run(workload(name="w", **OPEN), requests=60)["w"]
    assert (served.capped, served.errors.at_most(0).status) == (
        "attach.max_requests",
        Status.FAIL,
    )


def test_the_cap_is_for_all_workloads(run: Run, standin: Standin) -> None:
    """What the first one used, the second one does not get; then none is left."""
    names = ("first", "second", "third")
    served = run(*(workload(name=name, **OPEN) for name in names), requests=60)
    assert len(standin.requests()) == 60
    assert [bool(served[name].samples) for name in names] == [True, False, False]
    assert served["second"].interrupted == "not sent: attach.max_requests is reached"
    assert served["third"].errors.at_most(0).status is Status.ERROR


def test_no_more_at_once_than_the_cap(run: Run, standin: Standin) -> None:
    """An open loop that would have more in flight has found its end: nobody can measure beyond."""
    standin.configure(ttft_ms=400)
    served = run(workload(name="w", **OPEN), at_once=6)["w"]
    assert served.capped == "attach.max_concurrency"
    assert 6 < len(standin.requests()) <= 12
    assert len(served.samples) == 6


def test_without_a_cap(run: Run) -> None:
    """A server of our own gets all that there is to send."""
    served = run(workload(name="w", **{**OPEN, "max_duration": "500ms"}))["w"]
    assert (served.capped, len(served.samples) > 60) == ("", True)
