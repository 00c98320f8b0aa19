"""The wheel and the sdist hold what they should, and the wheel runs where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.specs import REPOSITORY

PACKAGE = REPOSITORY / "pytest_llmdeploy"


def run(
    *argv: str | Path, folder: Path = REPOSITORY, environment: Mapping[str, str] | None = None
) -> str:
    """What a command prints; it ends with 0."""
    done = subprocess.run(
        list(map(str, argv)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built from this source."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--installer=uv", "--outdir", folder, REPOSITORY)
    return folder


def test_both_are_well_formed(built: Path) -> None:
    """By the tools that the package index and its users have."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    run(sys.executable, "-m", "check_wheel_contents", *built.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    """Every module and every data file, no test."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    files = {path for path in PACKAGE.rglob("*") if path.is_file()}
    kept = {path for path in files if "__pycache__" not in path.parts}
    assert held == {path.relative_to(REPOSITORY).as_posix() for path in kept}
    assert {"pytest_llmdeploy/py.typed", "pytest_llmdeploy/facts/gpus.json"} <= held
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_sdist_can_be_tested(built: Path) -> None:
    """With the tests, specs, documents and examples that they read."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"pytest_llmdeploy", "tests", "specs", "docs", "examples", "README.md"} <= tops


def test_pipx_installs_both_commands(built: Path, tmp_path: Path) -> None:
    """`llmdeploy`, and with --include-deps the `pytest` that runs the gate; from the index, for its
    environment is its own.
    """
    pytest.importorskip("pipx")
    (wheel,) = built.glob("*.whl")
    bin_ = tmp_path / "bin"
    places = {
        "PIPX_HOME": tmp_path / "home",
        "PIPX_BIN_DIR": bin_,
        "PIPX_MAN_DIR": tmp_path / "man",
    }
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    run(sys.executable, "-m", "pipx", "install", "--include-deps", wheel, environment=environment)
    spec = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"
    assert "feasible" in run(bin_ / "llmdeploy", "plan", spec)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    gate = run(
        *(bin_ / "pytest", "--deploy-spec", spec, "--deploy-plan-only", "-qq"),
        folder=tmp_path,
        environment=clean,
    )
    assert "PLAN PASSES" in gate


@pytest.mark.vllm
def test_beside_vllm() -> None:
    """The package and vLLM ask for nothing that contradicts the other."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    ).stdout
    lines = [line.lower() for line in told.splitlines()]
    # What `make setup` removes on purpose is not ours.
    assert [line for line in lines if line.startswith("pytest-llmdeploy")] == []
    own = run(sys.executable, "-c", _OWN_REQUIREMENTS).split()
    broken = [line for line in lines if any(f"you have {name} " in line for name in own)]
    assert broken == []


_OWN_REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
found = map(Requirement, requires("pytest-llmdeploy"))
print(*(each.name.lower() for each in found if each.marker is None))
"""
