"""What a launch gets so that its workers can be asked, and what comes of asking them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.serving import Command, LaunchError, ServerFailedError, start
from pytest_llmdeploy.serving.extension.llmdeploy_worker import Facts
from pytest_llmdeploy.serving.introspection import (
    ADDED,
    EXTENSION,
    WorkerFacts,
    introspect,
    introspected,
)
from tests.exporter import pages
from tests.plan.deployments import tiny
from tests.serving.processes import python

COMMAND = Command(("vllm", "serve", "m"), {"A": "1"})


def test_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """One option and two variables, and they are what the report tells; nothing is replaced."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = introspected(COMMAND)
    option = "--worker-extension-cls=llmdeploy_worker.Facts"
    added = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(EXTENSION)}
    assert found == Command((*COMMAND.argv, option), {"A": "1", **added})
    assert list(ADDED) == [*(f"{name}={value}" for name, value in added.items()), option]


@pytest.mark.parametrize("place", ["spec", "here"])
def test_a_path_that_is_there_stays(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the spec, or inherited: the extension comes before it."""
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    own = {"PYTHONPATH": "/own"} if place == "spec" else {}
    path = introspected(Command(("vllm",), own)).environment["PYTHONPATH"]
    assert path == os.pathsep.join([str(EXTENSION), "/own" if own else "/inherited"])


def test_a_server_with_an_extension_of_its_own() -> None:
    """VLLM takes one: the run is told which to leave out."""
    for own in (["--worker-extension-cls", "a.B"], ["--worker-extension-cls=a.B"]):
        with pytest.raises(LaunchError, match="leave out --deploy-introspect"):
            introspected(Command(("vllm", *own), {}))


def test_without_it_the_command_is_the_specs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last word: neither an option nor a variable more."""
    launched: list[Command] = []

    class Noted(Exception):  # noqa: N818 - ends the launch where it would begin
        pass

    def note(command: Command, _log: Path, **_: object) -> None:
        launched.append(command)
        raise Noted

    command = Command(("vllm", "serve", "m", "--host=127.0.0.1", "--port=1"), {"A": "1"})
    monkeypatch.setattr(start, "launch_command", lambda _spec, _port: command)
    monkeypatch.setattr(start, "ServerProcess", note)
    for introspects in (False, True):
        deployment = Deployment(tiny(), tmp_path / "log", introspect=introspects)
        with pytest.raises(Noted):
            _ = deployment.server
    assert launched == [command, introspected(command)]


def test_the_extension_is_alone_on_its_path() -> None:
    """A worker imports it without the rest of the package, and nothing of that folder is in its way
    but the extension.
    """
    script = "import sys, llmdeploy_worker; print([m for m in sys.modules if 'pytest' in m])"
    environment = {"PYTHONPATH": str(EXTENSION)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    assert {path.name for path in EXTENSION.glob("*.py")} == {"__init__.py", "llmdeploy_worker.py"}


class Tensor:
    """So many bytes at an address."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def untyped_storage(self) -> Any:
        return SimpleNamespace(data_ptr=lambda: self.address, nbytes=lambda: self.size)


def test_a_worker_with_everything() -> None:
    """Every figure is where vLLM has it; caches that share their memory count once."""
    cache = Tensor(1, 1000)

    class Worker(Facts):
        rank, local_rank, device = 5, 1, "cuda:1"
        requested_memory, available_kv_cache_memory_bytes = 900, 2500.0
        peak_activation_memory, cudagraph_memory_estimate, total_consumed = 70, 30, 400
        init_snapshot = SimpleNamespace(total_memory=8000, free_memory=7000)
        cache_config = SimpleNamespace(num_gpu_blocks=12)
        model_runner = SimpleNamespace(
            model_memory_usage=128,
            kv_caches=[cache, cache, [Tensor(2, 1500)]],
        )

    facts = WorkerFacts.of(Worker().llmdeploy_facts())
    assert (facts.resident_bytes or 0) > 1024**2
    expected = WorkerFacts(
        pid=os.getpid(),
        rank=5,
        local_rank=1,
        device="cuda:1",
        resident_bytes=facts.resident_bytes,
        weights_bytes=128,
        activation_bytes=70,
        cuda_graph_bytes=30,
        kv_bytes=2500,
        kv_available_bytes=2500,
        kv_blocks=12,
        consumed_bytes=400,
        requested_bytes=900,
        total_bytes=8000,
        free_bytes=7000,
    )
    assert facts == expected


def test_a_worker_with_nothing_does_not_fail() -> None:
    """A worker of another version, or of another platform, says what there is."""
    facts = Facts().llmdeploy_facts()
    assert facts.pop("pid") == os.getpid()
    assert facts.pop("resident_bytes") > 0
    assert facts.pop("device") == "None"
    assert set(facts.values()) == {None}


def test_the_cpu_has_another_name_for_what_is_requested() -> None:
    """It is the same figure."""

    class Worker(Facts):
        requested_cpu_memory = 77

    assert Worker().llmdeploy_facts()["requested_bytes"] == 77


GOOD = {"pid": 7, "rank": 0, "local_rank": 0, "device": "cpu", "kv_bytes": 9, "news": "ignored"}


def test_asking() -> None:
    """Once, and each worker's answer is a record; that some are not asked is told."""
    with pages({"/collective_rpc": json.dumps({"results": [GOOD, {**GOOD, "rank": 1}]})}) as found:
        asked = introspect(Endpoint(found.url), 2)
        partly = introspect(Endpoint(found.url), 4)
    assert [(worker.rank, worker.kv_bytes) for worker in asked.workers] == [(0, 9), (1, 9)]
    assert (asked.problem, asked.added, len(found.posted)) == ("", ADDED, 2)
    assert partly.workers == asked.workers
    assert partly.problem.startswith("2 of 4 workers answer: ")


@pytest.mark.parametrize(
    ("results", "status", "problem"),
    [
        ([], 500, "/collective_rpc answers HTTP 500"),
        ([None], 200, "the workers do not answer as they should"),
        (["text"], 200, "the workers do not answer as they should"),
        ([{"rank": 1}], 200, "the workers do not answer as they should"),
        ([{**GOOD, "kv_bytes": "much"}], 200, "not all of these are whole numbers"),
    ],
)
def test_a_failing_call_is_told(results: list[Any], status: int, problem: str) -> None:
    """It ends nothing, and is not repeated."""
    with pages({"/collective_rpc": json.dumps({"results": results})}) as found:
        found.status = status
        asked = introspect(Endpoint(found.url), 1)
    assert problem in asked.problem
    assert (asked.workers, len(found.posted)) == ((), 1)


def test_a_start_that_fails_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the message is the one that was run."""
    command = python("raise SystemExit(3)")
    monkeypatch.setattr(start, "launch_command", lambda _spec, _port: command)
    deployment = Deployment(tiny(), tmp_path / "log", introspect=True)
    with pytest.raises(ServerFailedError, match=r"--worker-extension-cls=llmdeploy_worker\.Facts"):
        _ = deployment.server
