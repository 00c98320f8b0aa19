"""Attaching to a vLLM that runs already, with the user's own checks and tests."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.serving import Server
from tests.live.conftest import Run

SHORT = {
    "name": "short",
    "input_tokens": 32,
    "output_tokens": 8,
    "rate": "10/s",
    "warmup": "500ms",
    "max_duration": "60s",
    "require": {"ttft": {"p50": "8s"}, "errors": "0%"},
}


def test_the_plan_counts_the_kv_cache_as_vllm_does(tiny_server: Server) -> None:
    """Blocks, tokens and concurrency are equal, to the token."""
    planned = plan(tiny_server.spec)
    assert planned.kv_cache is not None
    assert planned.kv_cache.tokens == int(tiny_server.cache["kv_cache_size_tokens"])
    assert planned.ranks[0].kv_blocks == int(tiny_server.cache["num_gpu_blocks"])
    concurrency = float(tiny_server.cache["kv_cache_max_concurrency"])
    assert planned.kv_cache.max_concurrency == concurrency


def test_the_workers_are_the_devices(tiny_server: Server) -> None:
    """Each rank is a process, and holds its KV cache."""
    devices = tiny_server.devices
    assert [device.name for device in devices] == ["rank 0", "rank 1"]
    assert all((device.used.value or 0) > 256 * 1024**2 for device in devices)


def test_own_checks_and_tests_share_the_server(
    tiny_server: Server, gate: Callable[..., Run], tiny_spec: Callable[..., Path], tmp_path: Path
) -> None:
    """A check with a key of its own, a test file of its own: one server, nothing launched."""
    (tmp_path / "own_checks.py").write_text(
        textwrap.dedent(
            """
            from pytest_llmdeploy import Duration, Expect, Server, Traffic, check

            @check("Slowest request", require="team.slowest")
            def slowest(traffic: Traffic, required: Duration, expect: Expect) -> None:
                expect(max(traffic["short"].e2el.values), "ms").at_most(required)
            """
        )
    )
    (tmp_path / "test_own.py").write_text(
        textwrap.dedent(
            """
            def test_own(server, traffic):
                assert server.model["id"] == "tiny-llama"
                assert traffic["short"].outcomes["ok"] > 0
            """
        )
    )
    spec = tiny_spec(
        workloads=[SHORT], checks=["own_checks.py"], require={"team": {"slowest": "60s"}}
    )
    run = gate(spec, tmp_path / "test_own.py", "--deploy-url", tiny_server.url).finish()
    assert run.returncode == 0, run.output
    assert run.statuses()["slowest"] == "PASS"
    assert run.entry["server"]["command"] is None
    assert tiny_server.death == ""
    assert tiny_server.endpoint.is_healthy()


@pytest.mark.parametrize(
    ("limit", "check"),
    [
        ({"e2el": {"p99": "100ms"}}, "e2el"),
        ({"goodput": {"share": "50%", "e2el": "100ms"}}, "goodput"),
    ],
)
def test_a_latency_that_cannot_be_met_fails_soon(
    tiny_server: Server,
    gate: Callable[..., Run],
    tiny_spec: Callable[..., Path],
    limit: dict[str, dict[str, str]],
    check: str,
) -> None:
    """The row says what was found, and no request is sent that is not needed to know it. No core
    makes 128 tokens in 100 ms.
    """
    spec = tiny_spec(workloads=[{**SHORT, "output_tokens": 128, "require": limit}])
    run = gate("--deploy-spec", spec, "--deploy-url", tiny_server.url).finish()
    assert run.returncode == 1
    assert run.entry["verdict"] == "NOT READY", run.output
    failed = [row for row in run.entry["rows"] if row["status"] != "PASS"]
    assert [row["check"] for row in failed] == [check]
    if check == "e2el":
        assert failed[0]["bound"] > failed[0]["limit"]
    assert failed[0]["hint"]
    assert run.entry["traffic"]["short"]["seconds"] < 45


def test_a_run_is_held_against_an_earlier_one(
    tiny_server: Server, gate: Callable[..., Run], tiny_spec: Callable[..., Path], tmp_path: Path
) -> None:
    """What is as it was passes; what was six times as fast in the baseline fails."""
    regression = {metric: {"p50": "100%"} for metric in ("ttft", "e2el")}
    # Requests that hardly overlap tell the most.
    workload = {**SHORT, "arrival": "constant", "require": {"regression": regression}}
    workload["max_duration"] = "2min"  # which is seldom needed
    required = {"regression": {"memory": "20%"}}
    spec = tiny_spec(workloads=[{**workload, "min_duration": "12s"}], require=required)
    arguments = ("--deploy-spec", spec, "--deploy-url", tiny_server.url)
    first = gate(*arguments).finish()
    alone = [row["result"] for row in first.entry["rows"] if "regression" in row["check"]]
    assert alone == ["needs an earlier run to compare with: give --deploy-baseline"] * 4

    earlier = json.loads(first.report_path.read_text())
    requests = earlier["specs"][0]["traffic"]["short"]["requests"]
    # As of a run fifty times as long: on a busy machine requests are alike, and tell little.
    for name, column in requests.items():
        requests[name] = 50 * column
    requests["e2el"] = [value and value / 6 for value in requests["e2el"]]
    (tmp_path / "old.json").write_text(json.dumps(earlier))
    second = gate(*arguments, "--deploy-baseline", tmp_path / "old.json").finish()
    found = second.statuses()
    assert found["memory_regression"] == found["memory_regression_under_load"] == "PASS"
    assert found["e2el_regression[short-p50]"] == "FAIL", second.output
    # A client that was late on this machine lets nothing pass.
    assert found["ttft_regression[short-p50]"] in {"PASS", "INVALID"}, second.output
