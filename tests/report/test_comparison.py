"""What has changed between two runs."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmdeploy.baseline import Earlier
from pytest_llmdeploy.report.comparison import changes, lines
from tests.baseline.runs import columns, entry


def said(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return list(lines(changes(Earlier.of(was), Earlier.of(now), 0.95)))


def test_nothing_changed() -> None:
    """Other requests of the same server are within the interval."""
    assert said(entry(), entry(columns(seed=2))) == []


def test_rows_that_flipped_are_new_or_gone() -> None:
    rows = [
        {"id": "b.yaml::ttft", "item": "TTFT p99", "status": "FAIL"},
        {"id": "b.yaml::new", "item": "New", "status": "PASS"},
    ]
    gone = {"id": "a.yaml::old", "item": "Old", "status": "PASS"}
    was = entry(rows=[*entry()["rows"], gone])
    assert said(was, entry(rows=rows, verdict="NOT READY")) == [
        "verdict: READY → NOT READY",
        "TTFT p99: PASS → FAIL",
        "New: not there → PASS",
        "Old: PASS → not there",
    ]


def test_a_latency_that_moved_is_said_with_its_interval() -> None:
    found = changes(Earlier.of(entry()), Earlier.of(entry(columns(1.5, seed=2))), 0.95)
    assert {(one["metric"], one["percentile"]) for one in found["latency"]} == {
        (metric, percentile) for metric in ("ttft", "tpot", "e2el") for percentile in ("p50", "p90")
    }
    assert all(one["low"] < 1.5 < one["high"] for one in found["latency"])
    first = next(iter(lines(found)))
    assert first.startswith("TTFT p50, steady: ")
    assert first.count("+") == 2


def test_failed_requests_are_a_latency_that_nothing_bounds() -> None:
    found = changes(Earlier.of(entry()), Earlier.of(entry(columns(failed=390))), 0.95)
    median = found["latency"][0]
    assert median["is"] is median["low"] is median["high"] is None
    assert "→ failed (unbounded to unbounded)" in next(iter(lines(found)))


@pytest.mark.parametrize(
    ("was", "why"),
    [
        ({"sent": {"rate": "4/s"}}, "another workload: input_tokens was none, is 512"),
        ({"sent": {"rate": "4/s", "input_tokens": "512"}}, "rate was 4/s, is 8/s"),
        ({"sent": None}, "the baseline does not say what was sent"),
        ({"invalid": ["the client was late"]}, "the baseline is INVALID: the client was late"),
        ({"interrupted": "the server died"}, "the baseline was interrupted: the server died"),
        ({"requests": None}, "the baseline has no requests in its report"),
    ],
)
def test_what_is_not_comparable_is_not_compared(was: dict[str, Any], why: str) -> None:
    (line,) = said(entry(workload=was), entry(columns(1.5)))
    assert line.startswith("latencies of steady are not compared: ")
    assert line.endswith(why)


def test_a_new_workload_is_not_compared() -> None:
    assert said(entry(traffic=None), entry()) == [
        "latencies of steady are not compared: the baseline has no such workload"
    ]


def test_memory_and_cache() -> None:
    devices = {
        "at_rest": [{"name": "GPU 0", "used_bytes": 2**31}, {"name": "GPU 1", "used_bytes": 1}],
        "under_load": None,
    }
    now = entry(devices=devices, plan={"kv_cache": {"tokens": 900}})
    assert said(entry(), now) == [
        "memory of GPU 0 at rest: 1 GiB → 2 GiB",
        "KV cache: 1,000 → 900 tokens",
    ]
