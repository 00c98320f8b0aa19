"""Evidence, judgements and rows: the language that everything after it speaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What became of a requirement."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"
    WAIVED = "WAIVED"

    @property
    def is_green(self) -> bool:
        return self in {Status.PASS, Status.WAIVED}

    @property
    def is_decided(self) -> bool:
        return self in {Status.PASS, Status.FAIL}


class Verdict(StrEnum):
    """What became of a spec."""

    READY = "READY"
    NOT_READY = "NOT READY"
    UNDECIDED = "UNDECIDED"
    PLAN_PASSES = "PLAN PASSES"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A value, its unit, where it was read and when (Unix seconds, 0 for what was calculated);
    `identity` is the UUID of the device that it was read of, or the pid of the worker.

    `value` is None when it could not be read; `problem` then says why: "unsupported: …",
    "no permission: …", "lost: …" or "error: …".
    """

    value: float | None
    unit: str
    source: str
    at: float = 0.0
    problem: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A comparison of evidence with a requirement: a row without its name.

    `measured` is the point estimate, `bound` what the evidence supports at the declared
    confidence, `limit` the required value, all in `unit`; `margin` is the part of the limit that
    is left (negative when exceeded). None stands for unbounded or not applicable.
    """

    status: Status
    requirement: str
    result: str
    measured: float | None = None
    bound: float | None = None
    limit: float | None = None
    unit: str = ""
    margin: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""


def judged(good: bool | None, requirement: str, result: str, **fields: Any) -> Judgement:
    """PASS, FAIL, or INCONCLUSIVE when `good` is None; `fields` are those of a judgement."""
    status = {True: Status.PASS, False: Status.FAIL, None: Status.INCONCLUSIVE}[good]
    return Judgement(status=status, requirement=requirement, result=result, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Judgement):
    """One line of the checklist: a judgement with a name. `id` is pytest's node id, `require` the
    spec's key path (empty for a check that always runs).
    """

    check: str
    id: str
    family: str
    phase: str
    require: str
    item: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; never Infinity or NaN."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Row:
        return cls(**{**raw, "status": Status(raw["status"])})


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case StrEnum():
            return str(value)
    return value
