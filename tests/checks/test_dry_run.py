"""The row that says whether vLLM accepts a spec, for every answer that there may be."""

from __future__ import annotations

import pytest

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.serving import dry_run as module
from pytest_llmdeploy.serving.dry_run import DryRun, NoDryRunError
from pytest_llmdeploy.spec import Spec
from tests.checks.scenes import Scene

# The check that is tried here.
ASKED = {"accepted_by_vllm"}


def judged(found: DryRun, monkeypatch: pytest.MonkeyPatch) -> Judgement:
    monkeypatch.setattr(module, "dry_run", lambda _spec: found)
    return Scene(spec={"require": {"dry_run": True}}).judge("accepted_by_vllm")


def test_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes with the version that accepts it."""
    row = judged(DryRun("0.32.0"), monkeypatch)
    assert (row.status, row.result) == (Status.PASS, "accepted by vLLM 0.32.0")
    assert row.evidence["source"] == "create_engine_config() of vLLM 0.32.0"


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in vLLM's own words."""
    row = judged(DryRun("0.32.0", "Total number of attention heads (4) must be …"), monkeypatch)
    assert row.status is Status.FAIL
    assert row.result == "Total number of attention heads (4) must be …"
    assert row.hint.startswith("the sentence is vLLM's own")


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is neither."""
    row = judged(DryRun(problem="vLLM did not say so within 120 s"), monkeypatch)
    assert (row.status, row.result) == (Status.ERROR, "vLLM did not say so within 120 s")


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is skipped, with the reason."""

    def nobody(_spec: Spec) -> DryRun:
        raise NoDryRunError("vLLM cannot be imported in this environment")

    monkeypatch.setattr(module, "dry_run", nobody)
    with pytest.raises(pytest.skip.Exception, match="cannot be imported"):
        Scene(spec={"require": {"dry_run": True}}).judge("accepted_by_vllm")
