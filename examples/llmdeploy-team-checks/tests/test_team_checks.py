"""Every check passes where it should, and fails where it should."""

from __future__ import annotations

import json

import pytest

SPEC = """
version: 1
model: {id: meta-llama/Meta-Llama-3-8B-Instruct}
hardware: {device: L40S-48GB, devices_per_node: 2}
parallel: {tensor: 2}
require:
  team: {%s}
"""


@pytest.mark.parametrize(
    ("required", "status"),
    [
        ("max_devices: 2", "PASS"),
        ("max_devices: 1", "FAIL"),
        ("max_weights: 10GiB", "PASS"),
        ("max_weights: 5GiB", "FAIL"),
    ],
)
def test_the_checks(pytester: pytest.Pytester, required: str, status: str) -> None:
    """By the row in the report."""
    (pytester.path / "s.yaml").write_text(SPEC % required)
    report = pytester.path / "out.json"
    pytester.runpytest("--deploy-spec=s.yaml", "--deploy-plan-only", f"--deploy-report={report}")
    (spec,) = json.loads(report.read_text())["specs"]
    key = f"require.team.{required.partition(':')[0]}"
    (row,) = (row for row in spec["rows"] if row["require"] == key)
    assert row["status"] == status


def test_a_value_of_the_wrong_kind(pytester: pytest.Pytester) -> None:
    """It is refused with its line."""
    (pytester.path / "s.yaml").write_text(SPEC % "max_weights: much")
    result = pytester.runpytest("--deploy-spec=s.yaml", "--deploy-plan-only")
    result.stdout.fnmatch_lines(["*s.yaml:7: require.team.max_weights: *"])
    assert result.ret != 0
