"""A real vLLM as its spec describes it, and one that another spec describes; its workers' facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.serving.drift import drift
from pytest_llmdeploy.serving.introspection import ADDED
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import TINY, Run


@pytest.fixture(scope="module")
def introspected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The demo's deployment, launched with --deploy-introspect."""
    log = tmp_path_factory.mktemp("introspected") / "server.log"
    deployment = Deployment(load_spec(TINY), log, introspect=True)
    _ = deployment.server
    yield deployment
    assert not deployment.stopped.processes


@pytest.fixture
def server(introspected: Deployment) -> Server:
    return introspected.server


def test_the_workers_say_what_they_hold(introspected: Deployment, server: Server) -> None:
    """Each rank once, with the KV cache that is planned for it, to the byte."""
    asked = server.introspection
    assert asked is not None
    assert (asked.problem, asked.added) == ("", ADDED)
    planned = plan(server.spec)
    fixed = server.spec.serve.kv_cache_memory_bytes
    assert [worker.rank for worker in asked.workers] == [0, 1]
    assert {worker.pid for worker in asked.workers} == {int(d.identity) for d in server.devices}
    for worker, rank in zip(asked.workers, planned.ranks, strict=True):
        assert (worker.device, worker.kv_bytes, worker.kv_blocks) == ("cpu", fixed, rank.kv_blocks)
        assert worker.resident_bytes is not None
        assert worker.resident_bytes > 256 * 1024**2
        assert psutil.pid_exists(worker.pid)
    entry = introspected.to_json()["server"]
    assert [worker["rank"] for worker in entry["workers"]] == [0, 1]
    assert entry["introspection"] == {"added": list(ADDED), "problem": ""}


def test_the_server_is_as_declared(server: Server) -> None:
    """In dev mode every setting is seen, and is what the spec says or the plan resolves."""
    found = drift(plan(server.spec), server.settings())
    assert (found.status, found.result) == ("PASS", "16 match")
    (shown,) = found.evidence["servers"].values()
    assert {entry["source"] for entry in shown.values()} == {
        "/v1/models",
        "/version",
        "/server_info",
        "/get_world_size",
    }


def test_without_dev_mode_some_can_not_be_seen(server: Server) -> None:
    """What everybody is told, is as declared as well."""
    everywhere = server.settings()[server.url]
    told = {
        name: setting
        for name, setting in everywhere.items()
        if name not in {"dtype", "world_size", "max_num_seqs", "max_num_batched_tokens"}
    }
    found = drift(plan(server.spec), {server.url: told})
    assert (found.status, found.result) == ("PASS", "12 match, 4 cannot be seen")


def test_another_spec_is_not_this_server(
    server: Server, gate: Callable[..., Run], tiny_spec: Callable[..., Path]
) -> None:
    """Each setting that it declares otherwise is named, with both values, in the run's own row."""
    path = tiny_spec(
        model={"dtype": "bfloat16"},
        serve={"max_num_seqs": 32, "kv_cache_memory_bytes": "128MiB"},
        workloads=[],
        require={"devices": 2},
    )
    run = gate(path, "--deploy-url", server.url, "-k", "server_limits").finish()
    row = run.row("server_limits")
    assert (row["status"], run.returncode) == ("FAIL", 1)
    assert row["result"].startswith("max_num_seqs is 64, not 32, ")
    assert "kv_cache_memory_bytes is 268435456, not 134217728" in row["result"]
    assert "dtype is float32, not bfloat16" in row["result"]
    (shown,) = row["evidence"]["servers"].values()
    assert shown["max_num_seqs"] == {
        "declared": 32,
        "shown": 64,
        "source": "/server_info",
        "verdict": "DIFFERS",
    }
    assert shown["tp"]["verdict"] == "MATCHES"
    assert json.dumps(run.entry["server"]["workers"]) == "null"
