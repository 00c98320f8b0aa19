"""A real vLLM, asked whether it accepts a spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llmdeploy.serving.dry_run import NoDryRunError, dry_run
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import TINY, Run
from tests.plan.deployments import made


def test_it_accepts_the_demo() -> None:
    """With its version, and without starting anything."""
    found = dry_run(load_spec(TINY))
    assert (found.refusal, found.problem) == ("", "")
    assert found.version.startswith("0.")


def test_it_refuses_in_its_own_words(
    gate: Callable[..., Run], tiny_spec: Callable[..., Path]
) -> None:
    """The row has vLLM's sentence, beside the plan's own rule."""
    path = tiny_spec(
        parallel={"tensor": 3},
        hardware={"devices_per_node": 3},
        workloads=[],
        require={"dry_run": True},
    )
    run = gate(path, "--deploy-plan-only").finish()
    row = run.row("accepted_by_vllm")
    assert row["status"] == "FAIL"
    assert row["phase"] == "plan"
    assert row["result"] == (
        "Total number of attention heads (4) must be divisible by tensor parallel size (3)."
    )


def test_the_cpu_build_does_not_judge_gpus() -> None:
    """It would, by the CPU's rules."""
    with pytest.raises(NoDryRunError, match="the vLLM here is for the CPU"):
        dry_run(made())
