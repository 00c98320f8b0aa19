"""Runs of the gate on a real vLLM, in processes of their own, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.leftovers import title
from tests.specs import REPOSITORY

# Traffic for those who look at the devices meanwhile.
SHORT: dict[str, Any] = {
    "name": "short",
    "input_tokens": 64,
    "output_tokens": 16,
    "concurrency": 4,
    "max_duration": "5s",
    "require": {"concurrent_sequences": 1},
}
TINY = REPOSITORY / "specs" / "tiny-llama-cpu.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a vLLM."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vllm")


@dataclass
class Run:
    """One run of the gate: its process, and when it has ended, what it printed and reported."""

    process: subprocess.Popen[str]
    folder: Path
    output: str = ""
    # What a test does beside it, and undoes at the end.
    beside: ExitStack = field(default_factory=ExitStack)

    @property
    def report_path(self) -> Path:
        return self.folder / "report.json"

    def finish(self, timeout: float = 240) -> Run:
        self.output = self.process.communicate(timeout=timeout)[0]
        return self

    @property
    def returncode(self) -> int:
        return self.process.returncode

    @property
    def entry(self) -> dict[str, Any]:
        (entry,) = json.loads(self.report_path.read_text())["specs"]
        assert isinstance(entry, dict)
        return entry

    def row(self, check: str) -> dict[str, Any]:
        return next(row for row in self.entry["rows"] if row["check"] == check)

    def statuses(self) -> dict[str, str]:
        return {row["id"].partition("::")[2]: row["status"] for row in self.entry["rows"]}

    def completions(self) -> int:
        """How many the server has begun to answer: each is a line of its log."""
        # As the gate sees it: its file system may be one of its own.
        seen = Path(f"/proc/{self.process.pid}/root{self.folder}")
        logs = seen.glob("cache/d/llmdeploy/*.log")
        return sum(log.read_bytes().count(b"POST /v1/completions") for log in logs)

    def log(self) -> str:
        """What the server said, as far as it is kept."""
        logs = self.folder.glob("cache/d/llmdeploy/*.log")
        return "".join(log.read_text(errors="replace") for log in logs)

    def server_processes(self) -> list[psutil.Process]:
        """What runs below the gate now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, what: Callable[[], Any], seconds: float = 120) -> Any:
        """The first true answer of `what`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := what():
                return answer
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.1)
        pytest.fail(f"nothing came of {what} in {seconds} s")

    def named(self, text: str) -> psutil.Process | None:
        """A process below the gate that has this in the beginning of its command line."""
        return next((p for p in self.server_processes() if text in title(p)), None)

    def worker(self) -> psutil.Process | None:
        """A vLLM worker below the gate."""
        return self.named("VLLM::Worker")

    def close(self) -> None:
        """Ends it, if it runs, and what was beside it."""
        if self.process.poll() is None:
            self.process.kill()
            self.finish()
        self.beside.close()


def start_run(
    folder: Path, *arguments: str | Path, wrapper: Sequence[str] = (), **environment: str
) -> Run:
    """Starts the gate, in a process group of its own as a shell does; all that it writes is in
    `folder`, and so is it itself: from the repository it would take our own conftest for the
    user's.
    """
    # Whoever runs the tests in the background has Ctrl-C ignored, and the gate would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [*wrapper, sys.executable, "-m", "pytest", "-pno:hypothesispytest"]
    command += [f"--deploy-report={folder / 'report.json'}", f"-ocache_dir={folder / 'cache'}"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
        process_group=0,
    )
    return Run(process, folder)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs of the gate; afterwards, nothing that they started may be there."""
    before = set(vllm_processes())
    runs: list[Run] = []

    def start(*arguments: str | Path) -> Run:
        runs.append(start_run(tmp_path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.close()
    assert_nothing_left(before)


def assert_nothing_left(before: set[psutil.Process]) -> None:
    """No vLLM process that was not there before; the last ones get a few seconds to be reaped."""
    deadline = time.monotonic() + 30
    while left := set(vllm_processes()) - before:
        assert time.monotonic() < deadline, [(title(p), p.pid) for p in left]
        time.sleep(0.2)


def vllm_processes() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if "vllm" in title(p).lower()]


@pytest.fixture
def tiny_spec(tmp_path: Path) -> Callable[..., Path]:
    """The demo's spec with top-level keys merged in, written where the model is found."""

    def write(**overrides: Any) -> Path:
        document = yaml.safe_load(TINY.read_text())
        document["model"]["id"] = str(TINY.parent / "models" / "tiny-llama")
        for key, value in overrides.items():
            merged = isinstance(value, dict) and isinstance(document.get(key), dict)
            document[key] = {**document[key], **value} if merged else value
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write
