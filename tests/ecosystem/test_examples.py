"""The example package passes its own tests, installed as its users would have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.specs import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "llmdeploy-team-checks"


def test_the_tests_of_the_example(tmp_path: Path) -> None:
    """Its entry point is found, as from a package index but for the download."""
    dist = tmp_path / "llmdeploy_team_checks-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: llmdeploy-team-checks\n")
    points = "[pytest_llmdeploy.checks]\nteam = llmdeploy_team_checks\n"
    declared = (EXAMPLE / "pyproject.toml").read_text()
    assert '[project.entry-points."pytest_llmdeploy.checks"]' in declared
    assert 'team = "llmdeploy_team_checks"' in declared
    (dist / "entry_points.txt").write_text(points)
    path = os.pathsep.join(map(str, (REPOSITORY, EXAMPLE / "src", tmp_path)))
    quick = ("-pno:hypothesispytest", "-pno:syrupy", "-pno:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quick, "--rootdir", str(EXAMPLE), str(EXAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
