"""Where the time to the first token goes: the client's figures beside the server's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_llmdeploy.load.counters import PREFILL, QUEUE, TTFT, Counted
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.units import show


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Means over all requests of a run, in ms; None where the server does not report it.

    `client` is from when a request was due to when it was sent, `network` what the client sees
    between sending and the first token beyond the server's own TTFT: HTTP, parsing, streaming.
    `others` are the requests that the server answered and this run did not send.
    """

    client: float
    server: float | None
    network: float | None
    queue: float | None
    prefill: float | None
    others: int | None

    @classmethod
    def of(cls, samples: Sequence[Sample], counted: Counted | None) -> Breakdown | None:
        """The breakdown of what was answered; None when nothing was."""
        answered = [sample for sample in samples if sample.is_ok]
        if not answered:
            return None
        client = _mean([(sample.sent - sample.due) * 1000 for sample in answered])
        if counted is None:
            return cls(client, None, None, None, None, None)
        seen = _mean([(sample.stamps[0][0] - sample.sent) * 1000 for sample in answered])
        server, count = counted.mean(TTFT), counted.more(f"{TTFT}_count")
        return cls(
            client=client,
            server=server,
            network=None if server is None else seen - server,
            queue=counted.mean(QUEUE),
            prefill=counted.mean(PREFILL),
            others=None if count is None else max(0, round(count) - len(samples)),
        )

    def __str__(self) -> str:
        parts = ("queue", "prefill", "network", "client")
        known = ((name, getattr(self, name)) for name in parts)
        return ", ".join(f"{name} {show(v, 'ms')}" for name, v in known if v is not None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
