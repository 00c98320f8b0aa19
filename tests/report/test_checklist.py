"""The verdict of a spec, from the statuses of its rows."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Status, Verdict
from tests.report.rows import checklist

SETS = [found for size in range(len(Status) + 1) for found in combinations(Status, size)]


def expected(statuses: Collection[Status], *, plan_only: bool) -> Verdict:
    """The verdict as the design says it, sentence by sentence."""
    if "FAIL" in statuses:
        return Verdict.NOT_READY
    if {"INCONCLUSIVE", "INVALID", "ERROR", "SKIPPED"} & set(statuses) or not statuses:
        return Verdict.UNDECIDED
    return Verdict.PLAN_PASSES if plan_only else Verdict.READY


@pytest.mark.parametrize("plan_only", [False, True])
@pytest.mark.parametrize("statuses", SETS, ids="-".join)
def test_verdict(statuses: tuple[Status, ...], plan_only: bool) -> None:
    """For every set of statuses, alone and as a plan-only run."""
    found = checklist(*statuses, is_plan_only=plan_only).verdict
    assert found is expected(statuses, plan_only=plan_only)


@given(st.lists(st.sampled_from(Status)))
def test_order_and_number_do_not_matter(statuses: list[Status]) -> None:
    """Only which statuses there are decides."""
    assert checklist(*statuses).verdict is expected(statuses, plan_only=False)


@pytest.mark.parametrize("plan_only", [False, True])
@pytest.mark.parametrize("change", [{"not_run": ["a.yaml::x"]}, {"broken": "no spec"}])
def test_what_was_not_run_is_not_decided(change: dict[str, object], plan_only: bool) -> None:
    """A requirement without a row, or a file that is no spec, is never green."""
    found = checklist(Status.PASS, is_plan_only=plan_only, **change)
    assert found.verdict is Verdict.UNDECIDED


def test_what_a_plan_leaves_out_is_no_fault() -> None:
    """A plan-only run may pass without the live checks, and does not say READY."""
    found = checklist(Status.PASS, is_plan_only=True, left_out=["a.yaml::ttft"])
    assert found.verdict is Verdict.PLAN_PASSES
