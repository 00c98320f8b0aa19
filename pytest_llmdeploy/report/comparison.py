"""What has changed since an earlier run: plain data, as the report has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_llmdeploy.baseline import Earlier, Moved, NotComparableError, both_sent, moved, used
from pytest_llmdeploy.units import change, show

Changes = Mapping[str, Any]


def changes(was: Earlier, now: Earlier, confidence: float) -> Changes:
    """The object `changes` of the report.

    `low` and `high` of a latency are the factors between which it is of what it was, at
    `confidence` for each; null stands for infinity, as it does for a time at which requests fail.
    """
    latency: list[dict[str, Any]] = []
    not_compared: dict[str, str] = {}
    for name in now.traffic or {}:
        try:
            sent = both_sent(was, now, name)
        except NotComparableError as why:
            not_compared[name] = str(why)
        else:
            latency += [{"workload": name, **_latency(one)} for one in moved(*sent, confidence)]
    return {
        "verdict": {"was": was.verdict, "is": now.verdict},
        "rows": list(_rows(was, now)),
        "confidence": confidence,
        "latency": latency,
        "not_compared": not_compared,
        "memory": list(_memory(was, now)),
        "kv_cache_tokens": {"was": _tokens(was), "is": _tokens(now)},
    }


def lines(found: Changes) -> Iterator[str]:
    """What changed, for people: a latency when its interval excludes that it is as it was."""
    if found["verdict"]["was"] != found["verdict"]["is"]:
        yield f"verdict: {found['verdict']['was']} → {found['verdict']['is']}"
    for row in found["rows"]:
        yield f"{row['item']}: {row['was'] or 'not there'} → {row['is'] or 'not there'}"
    for entry in found["latency"]:
        if _bound(entry["low"]) > 1 or _bound(entry["high"]) < 1:
            yield _said(entry)
    for name, why in found["not_compared"].items():
        yield f"latencies of {name} are not compared: {why}"
    for entry in found["memory"]:
        if entry["was"] != entry["is"]:
            sizes = f"{show(entry['was'], 'B')} → {show(entry['is'], 'B')}"
            yield f"memory of {entry['device']} {entry['when']}: {sizes}"
    tokens = found["kv_cache_tokens"]
    if tokens["was"] != tokens["is"]:
        yield f"KV cache: {_count(tokens['was'])} → {_count(tokens['is'])} tokens"


def _rows(was: Earlier, now: Earlier) -> Iterator[dict[str, str | None]]:
    """What flipped, is new or gone; by what follows the file in the id, for files are renamed."""
    before = {row.id.partition("::")[2]: row for row in was.rows}
    after = {row.id.partition("::")[2]: row for row in now.rows}
    for id_ in {**after, **before}:
        old, new = before.get(id_), after.get(id_)
        row = new or old
        if row and (old is None or new is None or old.status != new.status):
            yield {
                "item": row.item,
                "was": old.status if old else None,
                "is": new.status if new else None,
            }


def _latency(one: Moved) -> dict[str, Any]:
    found = one.shift
    return {
        "metric": one.metric,
        "percentile": str(one.percentile),
        "was": _finite(found.was),
        "is": _finite(found.now),
        "low": _finite(found.low),
        "high": _finite(found.high),
    }


def _said(entry: dict[str, Any]) -> str:
    name = f"{entry['metric'].upper()} {entry['percentile']}, {entry['workload']}"
    low, high = change(_bound(entry["low"])), change(_bound(entry["high"]))
    return f"{name}: {_ms(entry['was'])} → {_ms(entry['is'])} ({low} to {high})"


def _bound(factor: float | None) -> float:
    return math.inf if factor is None else factor


def _ms(value: float | None) -> str:
    return "failed" if value is None else show(value, "ms")


def _memory(was: Earlier, now: Earlier) -> Iterator[dict[str, Any]]:
    """Of every device that was read in both runs, in bytes."""
    before, after = used(was), used(now)
    for key, size in after.items():
        if key in before:
            device, when = key
            yield {"device": device, "when": when, "was": before[key], "is": size}


def _tokens(run: Earlier) -> int | None:
    return run.plan.kv_cache.tokens if run.plan and run.plan.kv_cache else None


def _count(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
