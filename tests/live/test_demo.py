"""The demo: from a spec to READY on a real vLLM."""

from __future__ import annotations

from collections.abc import Callable

from tests.live.conftest import TINY, Run
from tests.specs import REPOSITORY


def test_the_demo_is_ready(gate: Callable[..., Run]) -> None:
    """Every row passes on evidence from the live server, in a few minutes."""
    run = gate("--deploy-spec", TINY).finish(timeout=420)
    assert run.returncode == 0, run.output
    rows = run.entry["rows"]
    live = [row for row in rows if row["phase"] in {"live", "stopped"}]
    assert run.entry["verdict"] == "READY", run.output
    assert len(rows) >= 12
    assert len(live) >= 8
    assert {row["status"] for row in rows} == {"PASS"}
    assert all(row["evidence"]["source"] for row in rows)
    assert f"READY: {len(rows)} passed" in run.output
    # The medians were decided early: on hardly more than the fewest requests that can decide them.
    assert run.row("tpot")["evidence"]["n"] < 500
    # No other client, no prefix cache, no late sending spoilt the traffic.
    assert run.entry["traffic"]["steady"]["invalid"] == []


def test_two_data_parallel_copies_are_ready(gate: Callable[..., Run]) -> None:
    """Two engines are two ranks, and the KV caches of both copies count."""
    run = gate("--deploy-spec", REPOSITORY / "specs" / "tiny-llama-cpu-dp2.yaml").finish(420)
    assert run.returncode == 0, run.output
    assert run.entry["verdict"] == "READY"
    assert run.row("ranks_up")["result"] == "2 of 2 ranks up"
    planned, live = run.row("planned_kv_capacity"), run.row("kv_capacity")
    assert planned["measured"] == live["measured"] == 256
