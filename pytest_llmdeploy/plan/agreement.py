"""Predicted against measured: the bytes of every rank as planned, beside those that were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pytest_llmdeploy.evidence import Evidence, Judgement, Status, judged
from pytest_llmdeploy.plan.model import Plan, Rank
from pytest_llmdeploy.units import Fraction, show

_UNREAD = Evidence(None, "B", "the devices", problem="lost: no device was read for it")


@dataclass(frozen=True, slots=True)
class RankBytes:
    """What is planned for a rank, at least and at most, and what was read of its device."""

    low: float
    high: float
    read: Evidence

    @property
    def difference(self) -> float | None:
        """Bytes beyond what is planned, or (negative) missing from it; 0 within."""
        if self.read.value is None:
            return None
        return max(0.0, self.read.value - self.high) + min(0.0, self.read.value - self.low)

    @property
    def excess(self) -> float:
        """How far outside it is, as a fraction of the nearer end; negative within."""
        read = self.read.value or 0.0
        return max((read - self.high) / self.high, (self.low - read) / self.low)

    def to_json(self) -> dict[str, Any]:
        return {
            "planned": [self.low, self.high],
            "difference": self.difference,
            "reading": asdict(self.read),
        }


def planned_bytes(plan: Plan, rank: Rank) -> tuple[float, float] | None:
    """The bytes in use on a rank while it serves, at least and at most.

    At least its weights and its KV cache, which vLLM allocates and fills with zeros at its start,
    so that all of it is resident before the first request.
    """
    if plan.kv_cache is None or rank.used_bytes is None or rank.activation_bytes is None:
        return None
    block = (rank.kv_bytes_per_token or 0) * plan.kv_cache.block_size
    low = (rank.weights_bytes or 0) + plan.kv_cache.blocks_range[0] * block
    if plan.spec.hardware.device.platform == "cpu":
        low += rank.activation_bytes[0]
    return low, max(low, rank.used_bytes)


def agreement(plan: Plan, read: Mapping[str, Evidence], tolerance: Fraction) -> Judgement:
    """What is read of every rank is what is planned, apart from the fraction `tolerance`.

    `read` is by device: a worker on the CPU is called by its rank, GPUs come in the order of ranks.
    """
    requirement = f"within {show(tolerance, 'fraction')} of the plan on each rank"
    compared = {
        str(rank): RankBytes(*planned, _of(rank, read))
        for rank in plan.ranks
        if (planned := planned_bytes(plan, rank)) is not None
    }
    sources = dict.fromkeys(one.read.source for one in compared.values())
    evidence = {
        "source": "; ".join(["calculated from the spec", *sources]),
        "ranks": {name: one.to_json() for name, one in compared.items()},
    }
    unread: dict[str, list[str]] = {}
    for name, one in compared.items():
        if one.read.value is None:
            unread.setdefault(one.read.problem, []).append(name)
    if unread or not compared:
        problems = [f"{problem} ({', '.join(names)})" for problem, names in unread.items()]
        unknown = plan.unknown or "the plan does not know the bytes of a rank"
        return Judgement(
            status=Status.ERROR,
            requirement=requirement,
            result="; ".join(problems) or unknown,
            limit=tolerance,
            unit="fraction",
            evidence=evidence,
        )
    worst = max(compared, key=lambda name: compared[name].excess)
    found = compared[worst]
    expected = f"{show(found.low, 'B')} to {show(found.high, 'B')}"
    measured = max(0.0, found.excess)
    return judged(
        measured <= tolerance,
        requirement,
        f"{show(found.read.value or 0, 'B')}, planned {expected} ({worst})",
        measured=measured,
        limit=tolerance,
        unit="fraction",
        margin=(tolerance - measured) / tolerance if tolerance else None,
        evidence={**evidence, "worst": worst},
    )


def _of(rank: Rank, read: Mapping[str, Evidence]) -> Evidence:
    own = {"devices", str(rank)} & set(read)
    if own:
        return read[own.pop()]
    entries = [] if any(name.startswith("rank ") for name in read) else list(read.values())
    return entries[rank.rank] if rank.rank < len(entries) else _UNREAD
