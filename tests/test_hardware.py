"""The 8 × H100 spec's hardware rows in whole runs, over NVML's real module and a fake library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_nvml import H100
from tests.machines import MACHINES, SERVING
from tests.specs import REPOSITORY
from tests.standin import Standin

SPEC = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    """A server of the spec's model, eight ranks wide."""
    model = "meta-llama/Meta-Llama-3-70B-Instruct"
    settings = {"gpu_memory_utilization": "0.85"}
    with Standin(
        model=model, max_model_len=8192, tensor_parallel=8, cache_config=settings
    ) as running:
        yield running


def statuses(folder: Path, fake: list[str], *arguments: str) -> dict[str, str]:
    """The status of every row of a run, started by `python -m tests.fake_nvml`."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "tests.fake_nvml", f"--folder={folder}", *fake, "--"]
    command += [sys.executable, "-m", "pytest", "-pno:cacheprovider", "-pno:hypothesispytest", "-q"]
    command += [f"--deploy-report={report}", f"--deploy-spec={SPEC}", *arguments]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60, check=False)
    (entry,) = json.loads(report.read_text())["specs"]
    return {row["check"]: row["status"] for row in entry["rows"]}


@pytest.mark.parametrize("machine", ["sound", "one lane down"])
def test_the_host_before_the_launch(nvml_library: Path, tmp_path: Path, machine: str) -> None:
    """A fault turns its own row, and no other."""
    del nvml_library
    found = statuses(tmp_path, ["--machine", machine], "-m", "host")
    assert {"devices_present", "interconnect", "nvlink_lanes", "ecc"} <= set(found)
    wrong = {check: status for check, status in found.items() if status != "PASS"}
    assert wrong == MACHINES[machine].wrong


def test_memory_while_serving(nvml_library: Path, standin: Standin, tmp_path: Path) -> None:
    """The rows of a server that was attached to: one GPU that is fuller turns its own."""
    del nvml_library
    keys = {**SERVING, "gpu5.mem.used": round(0.88 * H100.memory_mib) << 20}
    faults = ["--fault", *(f"{key}={value}" for key, value in keys.items())]
    rows = "(memory or ranks or model) and not under_load"
    found = statuses(tmp_path, faults, f"--deploy-url={standin.url}", "-m", "live", "-k", rows)
    assert found == {
        "model_served": "PASS",
        "ranks_up": "PASS",
        "memory_utilization": "FAIL",
        "memory_balance": "FAIL",
    }
