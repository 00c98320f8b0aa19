"""What a vLLM says at /metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Metrics:
    """Samples by name; each is its labels and its value. `at` is the time of the reading."""

    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    at: float

    @classmethod
    def parse(cls, text: str, at: float) -> Metrics:
        """Metrics from Prometheus' text format.

        Raises:
            ValueError: when the text is not in that format.
        """
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return cls(samples, at)

    def total(self, name: str) -> float | None:
        """The sum over all engines; None when the server does not report it."""
        found = self.samples.get(name)
        return sum(value for _, value in found) if found else None

    def by_engine(self, name: str) -> Mapping[str, float]:
        """The sum per data-parallel engine."""
        engines: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, ()):
            engines[labels.get("engine", "0")] += value
        return engines

    def labels(self, name: str) -> Sequence[Mapping[str, str]]:
        """The labels of every sample, where they are what is being said."""
        return [labels for labels, _ in self.samples.get(name, ())]


def quick_totals(page: bytes, names: Collection[str]) -> Mapping[str, float]:
    """The sums of some metrics' samples, without parsing the rest: for reading while measuring.

    Raises:
        ValueError: when one of their samples has no number.
    """
    wanted = {name.encode(): name for name in names}
    totals: dict[str, float] = {}
    for line in page.splitlines():
        name = wanted.get(line.partition(b"{")[0].partition(b" ")[0])
        if name is not None:
            totals[name] = totals.get(name, 0.0) + float(line.rpartition(b" ")[2])
    return totals
