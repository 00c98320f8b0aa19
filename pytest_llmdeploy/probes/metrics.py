"""What a server says at /metrics, in Prometheus' text format."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_ENGINE = re.compile(rb'[{,]engine="([^"]*)"')
_ONLY_ENGINE = "0"


@dataclass(frozen=True)
class Metrics:
    """Samples by name; each is its labels and its value. `at` is the time of the reading, `times`
    the times that the samples say of themselves, if they do.
    """

    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    at: float
    times: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, at: float) -> Metrics:
        """Metrics from Prometheus' text format.

        Raises:
            ValueError: when the text is not in that format.
        """
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        times: dict[str, list[float | None]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
                stamp = sample.timestamp
                times[sample.name].append(None if stamp is None else float(stamp))
        return cls(samples, at, times)

    def total(self, name: str) -> float | None:
        """The sum over all engines; None when the server does not report it."""
        found = self.samples.get(name)
        return sum(value for _, value in found) if found else None

    def by_engine(self, name: str) -> Mapping[str, float]:
        """The sum per data-parallel engine."""
        engines: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, ()):
            engines[labels.get("engine", _ONLY_ENGINE)] += value
        return engines

    def labels(self, name: str) -> Sequence[Mapping[str, str]]:
        """The labels of every sample, where they are what is being said."""
        return [labels for labels, _ in self.samples.get(name, ())]


def quick_samples(page: bytes, names: Collection[str]) -> Iterator[tuple[str, str, float]]:
    """Name, engine and value of the samples of some metrics, without parsing the rest: for reading
    while measuring.

    Raises:
        ValueError: when one of their samples has no number.
    """
    wanted = {name.encode(): name for name in names}
    for line in page.splitlines():
        name = wanted.get(line.partition(b"{")[0].partition(b" ")[0])
        if name is not None:
            engine = _ENGINE.search(line)
            label = engine[1].decode("utf-8", "replace") if engine else _ONLY_ENGINE
            yield name, label, float(line.rpartition(b" ")[2])
