"""Entries of reports to compare, as plain JSON."""

from __future__ import annotations

import random
from typing import Any

SENT = {"rate": "8/s", "input_tokens": "512"}


def columns(factor: float = 1.0, n: int = 400, *, failed: int = 0, seed: int = 1) -> dict[str, Any]:
    """Requests with lognormal latencies times `factor`; the last ones failed."""
    random_ = random.Random(seed)  # noqa: S311 - a simulation
    values = [100 * factor * random_.lognormvariate(0, 0.3) for _ in range(n)]
    kept: list[float | None] = [*values[: n - failed], *[None] * failed]
    outcome = ["ok"] * (n - failed) + ["http error"] * failed
    return {"outcome": outcome, "ttft": kept, "tpot": kept, "e2el": kept}


def entry(requests: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A spec of a report; `changes` replace its parts, those of `workload` what it says of that."""
    workload = {"sent": SENT, "requests": requests or columns(), **changes.pop("workload", {})}
    rows = [{"id": "a.yaml::ttft", "item": "TTFT p99", "status": "PASS"}]
    found = {
        "name": "a",
        "verdict": "READY",
        "rows": rows,
        "plan": {"kv_cache": {"tokens": 1000}},
        "traffic": {"steady": workload},
        "devices": {
            "at_rest": [{"name": "GPU 0", "used_bytes": 2**30}],
            "under_load": {"series": {"GPU 0": {"used_bytes": [2**30, None, 2**31]}}},
        },
    }
    return {**found, **changes}
