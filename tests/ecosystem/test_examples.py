"""The example package passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.example import EXAMPLE, installed


def test_the_tests_of_the_example(tmp_path: Path) -> None:
    """Its entry point is found, and no run within a run spoils the next one."""
    quick = ("-pno:hypothesispytest", "-pno:syrupy", "-pno:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quick, "--rootdir", str(EXAMPLE), str(EXAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": installed(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
