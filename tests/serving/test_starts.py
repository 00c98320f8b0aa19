"""Many starts and stops in a row leave nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pytest_llmdeploy.serving import start
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import Spec
from tests.leftovers import Family, snapshot
from tests.serving.processes import fake_vllm


def test_five_starts_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, socket, thread, open file or temporary file is new."""
    scratch = tmp_path / "t"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(start, "launch_command", lambda _spec, port: fake_vllm(port))
    spec = Spec.model_validate(
        {"version": 1, "model": {"id": "tiny-llama"}, "hardware": {"device": "cpu"}}
    )
    family = Family()
    before = snapshot(family, scratch)
    for _ in range(5):
        _, process = launch(spec, tmp_path / "server.log", lambda _text: None)
        assert not process.stop().processes
    after = snapshot(family, scratch)
    new = {kind: found - before[kind] for kind, found in after.items()}
    # What others do on this machine meanwhile is seen there, and this server has none.
    del new["shared memory"]
    assert not any(new.values()), new
