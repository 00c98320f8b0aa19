"""A newcomer's first commands, from an empty folder and the built wheel, as they are shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.serving import Server
from tests.specs import REPOSITORY

pytestmark = pytest.mark.vllm

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
MANIFEST = REPOSITORY / "tests" / "cli" / "manifests" / "production-stack.yaml"
CHECKS = """
from pytest_llmdeploy import Bytes, Expect, Plan, check

@check("Weights per rank", require="team.max_weights", hint="raise parallel.tensor")
def weights_per_rank(plan: Plan, required: Bytes, expect: Expect) -> None:
    expect({str(r): Bytes(r.weights_bytes or 0) for r in plan.ranks}).at_most(required)
"""
SPEC = f"""version: 1
model: {{id: {MODEL}}}
hardware: {{device: L40S-48GB, devices_per_node: 2}}
parallel: {{tensor: 2}}
checks: [checks_own.py]
require:
  team: {{max_weights: LIMIT}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder and a new environment that has the wheel. What the wheel depends on is read
    from the environment that runs the tests, by a .pth file: it needs no network, and no minute.
    """
    folder = tmp_path_factory.mktemp("newcomer")
    dist, venv = folder / "dist", folder / "venv"
    pip = [sys.executable, "-m", "pip", "-q"]
    make: list[str | Path] = [*pip, "wheel", "--no-deps", "-w", dist, REPOSITORY]
    subprocess.run(make, check=True, capture_output=True, cwd=folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (wheel,) = dist.glob("*.whl")
    install: list[str | Path] = [*pip, "--python", venv, "install", "--no-deps", wheel]
    subprocess.run(install, check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


def test_the_first_five_minutes(
    home: Path,
    tiny_server: Server,
    snapshot: SnapshotAssertion,
) -> None:
    """Specs four ways, plans, the gate of a server on the CPU, and an own check that fails and then
    passes.
    """
    work = home / "work"
    work.mkdir()
    shutil.copy(MANIFEST, work / "manifest.yaml")
    (work / "checks_own.py").write_text(CHECKS)
    gate = "python -m pytest -q --no-header --deploy-spec"
    found = run("python -c 'import pytest_llmdeploy; print(pytest_llmdeploy.__file__)'", home, work)
    assert str(home / "venv") in found[1]
    commands = [
        f"llmdeploy init --from-command 'vllm serve {MODEL} -tp 2' --device L40S-48GB -o one.yaml",
        "llmdeploy init --from-manifest manifest.yaml --device L40S-48GB -o two.yaml",
        f"llmdeploy init --model {MODEL} --device L40S-48GB -o three.yaml",
        f"llmdeploy init --from-url {tiny_server.url} --device cpu -o four.yaml",
        "llmdeploy plan one.yaml",
        f"{gate} one.yaml --deploy-plan-only",
        # What it does not tell, and more traffic, so that it takes no minute.
        "sed -i 's/# dtype: bfloat16/dtype: float32/; s/rate: 1.s/rate: 10\\/s/' four.yaml",
        f"{gate} four.yaml",
        f"{gate} strict.yaml --deploy-plan-only",
        f"{gate} fair.yaml --deploy-plan-only",
    ]
    for name, limit in (("strict", "5GiB"), ("fair", "10GiB")):
        (work / f"{name}.yaml").write_text(SPEC.replace("LIMIT", limit))
    shown = [run(command, home, work) for command in commands]
    assert [code for code, _ in shown] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0], shown
    text = "\n".join(f"$ {line}\n{out}" for line, (_, out) in zip(commands, shown, strict=True))
    assert text.replace(tiny_server.url, "http://localhost:8000") == snapshot


def run(command: str, home: Path, work: Path) -> tuple[int, str]:
    """The exit code of a command in a terminal of 80 columns, and what it prints but for times."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{home / 'venv' / 'bin'}:{os.environ['PATH']}"
    addopts = "-pno:cacheprovider -pno:hypothesispytest"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=work,
        env={**clean, "PATH": path, "COLUMNS": "80", "PYTEST_ADDOPTS": addopts},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    text = done.stdout.replace(str(work), "~")
    return done.returncode, re.sub(r"\d+(\.\d+)? s\b|\d+\.\d+s", "… s", text)
