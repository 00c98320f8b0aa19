"""The 8 × H100 spec's hardware checks, over NVML's real module and a fake library under it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fake_nvml import A100, H100, FakeNvml, Profile, build
from tests.specs import REPOSITORY
from tests.standin import Standin

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the fake is compiled with cc")

SPEC = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"
USED = round(0.84 * H100.memory_mib * 1024**2)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake library, compiled."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> FakeNvml:
    return FakeNvml(library, tmp_path / "machine")


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    """A server of the spec's model, eight ranks wide."""
    model = "meta-llama/Meta-Llama-3-70B-Instruct"
    settings = {"gpu_memory_utilization": "0.85"}
    with Standin(
        model=model, max_model_len=8192, tensor_parallel=8, cache_config=settings
    ) as running:
        yield running


def statuses(tmp_path: Path, environment: Mapping[str, str], *arguments: str) -> dict[str, str]:
    """The status of every row of a run on a machine of this environment."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", "-pno:hypothesispytest", "-q"]
    command += [f"--deploy-report={report}", f"--deploy-spec={SPEC}", *arguments]
    subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    (entry,) = json.loads(report.read_text())["specs"]
    return {row["check"]: row["status"] for row in entry["rows"]}


@pytest.mark.parametrize(
    ("profile", "count", "overrides", "wrong"),
    [
        (H100, 8, {}, {}),
        (H100, 7, {}, {"devices_present": "FAIL"}),
        (A100, 8, {}, {"devices_present": "FAIL"}),
        (H100, 8, {"p2p.2.5.nvlink": "5"}, {"interconnect": "FAIL"}),
        (H100, 8, {"gpu3.error.P2PStatus": "3"}, {"interconnect": "ERROR"}),
        (
            H100,
            8,
            {"gpu3.error.*": "15"},
            {"devices_present": "FAIL", "interconnect": "ERROR"},
        ),
        (
            H100,
            8,
            {"error.InitWithFlags": "18"},
            {"devices_present": "ERROR", "interconnect": "ERROR"},
        ),
    ],
    ids=["sound", "seven", "wrong model", "pair", "unsupported", "lost", "driver mismatch"],
)
def test_the_host_before_the_launch(
    fake: FakeNvml,
    tmp_path: Path,
    profile: Profile,
    count: int,
    overrides: Mapping[str, str],
    wrong: Mapping[str, str],
) -> None:
    """Each fault turns its own rows, and no other."""
    fake.write(profile, overrides, count=count)
    found = statuses(tmp_path, fake.env(), "-m", "host")
    assert found == {"devices_present": "PASS", "interconnect": "PASS", **wrong}


def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    """No NVML is an ERROR, never a pass."""
    found = statuses(tmp_path, {}, "-m", "host")
    assert found == {"devices_present": "ERROR", "interconnect": "ERROR"}


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        ({}, set()),
        ({"gpu5.mem.used": str(round(USED * 1.08))}, {"memory_utilization", "memory_balance"}),
        ({"gpu5.mem.used": str(round(USED * 0.9))}, {"memory_balance"}),
        ({"gpu5.error.MemoryInfo": "3"}, {"memory_utilization", "memory_balance"}),
    ],
    ids=["sound", "one rank fuller", "one rank emptier", "unsupported"],
)
def test_memory_while_serving(
    fake: FakeNvml,
    standin: Standin,
    tmp_path: Path,
    overrides: Mapping[str, str],
    wrong: set[str],
) -> None:
    """The memory rows read every GPU; what deviates on one of them turns these rows only."""
    fake.write(H100, {"gpu.mem.used": str(USED), **overrides}, count=8)
    attach = f"--deploy-url={standin.url}"
    found = statuses(tmp_path, fake.env(), attach, "-m", "live", "-k", "memory or ranks or model")
    assert {name for name, status in found.items() if status != "PASS"} == wrong
    assert {"memory_utilization", "memory_balance", "ranks_up", "model_served"} <= set(found)
