"""What a worker process is told to do, and what it tells of it."""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Workload

_HEAD = struct.Struct("<I")
HEAD_BYTES = _HEAD.size
# What a worker says first.
READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Requests to send: at given times (open loop), or from so many places (closed loop).

    Times are seconds on the monotonic clock, which all processes of a machine share. `schedule`
    holds the number of a request and when it is due; `places` send their first requests at `start`,
    and none after `until`. Their requests get the numbers `first`, `first + step`, …
    None with the number `most` or more is sent; the schedule ends where `at_once` are in flight.
    """

    endpoint: Endpoint
    workload: Workload
    model: str
    vocab: int
    nonce: int
    schedule: Sequence[tuple[int, float]] = ()
    places: int = 0
    start: float = 0.0
    until: float = 0.0
    first: int = 0
    step: int = 1
    most: int = sys.maxsize
    at_once: int = sys.maxsize


@dataclass(frozen=True, slots=True)
class StopSending:
    """Send nothing more; what is in flight may end."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up what is in flight, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a job since the last report.

    `lags` are by how many seconds the event loop was late for a timer, `busy` is the share of a
    core that the process used; `heard` is when the last token of what is in flight came, so far as
    bytes tell, and is looked at now and then; `is_full` when the schedule ended because `at_once`
    were in flight, `is_done` when everything of the job has ended.
    """

    ended: Sequence[tuple[int, Sample]]
    lags: Sequence[float]
    busy: float
    heard: float = 0.0
    is_full: bool = False
    is_done: bool

    @property
    def last_token(self) -> float:
        """When the last token came that it knows of; 0 when it knows of none."""
        stamps = (sample.stamps[-1][0] for _, sample in self.ended if sample.stamps)
        return max(self.heard, *stamps, 0.0)


def packed(message: Any) -> bytes:
    """A message as it goes through a pipe between two processes of ours: its length, and itself."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(body)) + body


def length(head: bytes) -> int:
    """How many bytes follow this head."""
    (count,) = _HEAD.unpack(head)
    return int(count)


def unpacked(body: bytes) -> Any:
    return pickle.loads(body)  # noqa: S301 - only ever from a process that this one started
