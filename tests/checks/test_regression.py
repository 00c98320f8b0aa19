"""The checks that compare with an earlier run: each passes, fails, and is not green unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Status
from tests.checks.scenes import STEADY, Scene, gpus, sample

TOLERANCES = {metric: {"p50": "10%"} for metric in ("ttft", "tpot", "e2el")}


def workload(**require: Any) -> dict[str, Any]:
    return {**STEADY, "require": {**STEADY["require"], **require}}


SPEC = {"workloads": [workload(regression=TOLERANCES)], "require": {"regression": {"memory": "5%"}}}
SAME = Scene(spec=SPEC)
ANOTHER, RENAMED = ({"workloads": [{**STEADY, **key}]} for key in ({"rate": "4/s"}, {"name": "x"}))
# Within every limit of the spec, and slower than 200 ms and 20 ms.
LATER, SLOWER = sample(ttft=300), sample(gaps=(30, 30, 30))

# Check: the scene in which it fails, what it finds.
REGRESSIONS: dict[str, tuple[Scene, str]] = {
    "ttft_regression": (Scene(spec=SPEC, samples=(LATER,) * 200), "≥ +50 %: 200 ms → 300 ms"),
    "tpot_regression": (Scene(spec=SPEC, samples=(SLOWER,) * 200), "≥ +50 %: 20 ms → 30 ms"),
    "e2el_regression": (Scene(spec=SPEC, samples=(LATER,) * 200), "≥ +38.46 %: 260 ms → 360 ms"),
    "memory_regression": (
        Scene(spec=SPEC, devices=gpus((64,) * 7 + (68,))), "6.25 % (GPU 7)",
    ),
    "memory_regression_under_load": (
        Scene(spec=SPEC, under_load=[gpus(), gpus((64,) * 7 + (72,))]), "12.5 % (GPU 7)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_is_as_it_was_passes(name: str) -> None:
    found = SAME.judge(name)
    assert found.status is Status.PASS
    assert found.evidence["source"]
    assert found.hint == ""


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_is_worse_fails(name: str) -> None:
    """Within the limits or not; and what is better by as much passes."""
    scene, result = REGRESSIONS[name]
    found = scene.judge(name)
    assert found.status is Status.FAIL
    assert found.result == result
    assert found.hint
    assert replace(SAME, earlier=scene).judge(name).status is Status.PASS


# Check, the scene, what it says; they are tried with those of the other checks.
UNCOMPARED: list[tuple[str, Scene, Status, str]] = [
    ("ttft_regression", replace(SAME, samples=()), Status.ERROR, "no request was measured"),
    ("ttft_regression", replace(SAME, samples=(sample(),) * 3), Status.INCONCLUSIVE, "about +0 %"),
    ("ttft_regression", replace(SAME, interrupted="it died"), Status.ERROR, "it died"),
    ("ttft_regression", replace(SAME, invalid=["sent late"]), Status.INVALID, "sent late"),
    ("ttft_regression", replace(SAME, earlier=Scene(samples=(sample(),) * 99)),
     Status.INCONCLUSIVE, "about +0 %: 200 ms → 200 ms"),
    ("ttft_regression", replace(SAME, earlier=Scene(interrupted="it died")),
     Status.ERROR, "the baseline was interrupted: it died"),
    ("ttft_regression", replace(SAME, earlier=Scene(invalid=["sent late"])),
     Status.ERROR, "the baseline is INVALID: sent late"),
    ("tpot_regression", replace(SAME, earlier=Scene(spec=ANOTHER)),
     Status.ERROR, "the baseline was another workload: rate was 4/s, is 8/s"),
    ("e2el_regression", replace(SAME, earlier=Scene(spec=RENAMED)),
     Status.ERROR, "the baseline has no such workload"),
    ("memory_regression", replace(SAME, earlier=Scene(devices=gpus((64,) * 7))),
     Status.ERROR, "the baseline has not read it"),
    ("memory_regression", replace(SAME, devices=gpus((64, None))), Status.ERROR, "GPU is lost"),
    ("memory_regression_under_load", replace(SAME, earlier=Scene(under_load=[])),
     Status.ERROR, "the baseline has not read it"),
]  # fmt: skip
