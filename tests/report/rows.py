"""Rows and checklists to render."""

from __future__ import annotations

from typing import Any

from pytest_llmdeploy.evidence import Row, Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.report import Checklist
from tests.plan.deployments import made


def row(status: Status = Status.PASS, **changes: Any) -> Row:
    """A row of that status."""
    fields: dict[str, Any] = {
        "check": "memory_headroom",
        "id": "a.yaml::memory_headroom",
        "family": "memory",
        "phase": "live",
        "require": "require.memory.min_headroom",
        "item": "Memory headroom",
        "requirement": "≥ 8 GiB on each device",
        "result": "11.2 GiB (GPU 3)",
        "evidence": {"source": "NVML"},
    }
    return Row(status=status, **{**fields, **changes})


def checklist(*statuses: Status, **changes: Any) -> Checklist:
    """A checklist with one row of each status."""
    rows = [row(status) for status in statuses]
    return Checklist(**{"name": "a", "path": "a.yaml", "rows": rows, **changes})


def full_checklist() -> Checklist:
    """A checklist with a plan, traffic and devices."""
    latencies = {"n": 10, "p50": 1.0, "p90": 2.0, "p99": None, "max": None}
    traffic = {
        "offered_rate": 8.0,
        "achieved_rate": 7.9,
        "seconds": 10.0,
        "counts": {"ok": 79, "http error": 1},
        "failures": {"http error": "HTTP 500"},
        "interrupted": None,
        "running_peak": 12.0,
        "preemptions": 0,
        **dict.fromkeys(("ttft", "tpot", "e2el", "stall"), latencies),
    }
    device = {"name": "GPU 0", "identity": "GPU-0", "kind": "NVIDIA H100 80GB HBM3"}
    seen = [{**device, "total_bytes": 8e10, "used_bytes": None, "fields": {"power": 640.0}}]
    series = {"GPU 0": {"used_bytes": [6.4e10, None], "power": [640.0, 641.0]}}
    under_load = {"origin": 1.8e9, "times": [0.0, 1.0], "series": series}
    facts = {
        "plan": plan(made()).to_json(),
        "server": None,
        "traffic": {"steady": traffic},
        "devices": {"before": seen, "at_rest": seen, "under_load": under_load, "after": None},
    }
    return checklist(*Status, facts=facts, not_run=["a.yaml::kv_capacity"])
