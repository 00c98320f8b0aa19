"""The smallest changes with which every plan check passes, each verified by planning it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from typing import Any

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.plan.planner import plan
from pytest_llmdeploy.plan.requirements import judgements, strategy
from pytest_llmdeploy.plan.search import alternatives
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import Bytes, Duration, Fraction

_MOST_REPAIRS = 5
_MOST_VALUES = 8
_UTILIZATIONS = [Fraction(percent / 100) for percent in range(60, 96)]
_POWERS = [2**power for power in range(3, 18)]


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the spec with another value; `was` is None where it was not given."""

    key: str
    value: Any
    was: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.value}" + (f" (was {self.was})" if self.was is not None else "")


@dataclass(frozen=True, slots=True)
class Repair:
    """Changes with which every plan check passes."""

    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.changes))


@dataclass(frozen=True, slots=True)
class Impossible:
    """A requirement that no change tried can meet, and the closest that was reached."""

    requirement: str
    wanted: str
    closest: str

    def __str__(self) -> str:
        return f"{self.requirement}: {self.wanted} cannot be reached; the closest is {self.closest}"


@dataclass(frozen=True, slots=True)
class Repairs:
    """What mends a spec. `needed` is False where every plan check passes as it is."""

    repairs: tuple[Repair, ...] = ()
    impossible: tuple[Impossible, ...] = ()
    needed: bool = True


def repairs(spec: Spec) -> Repairs:
    """One change that mends everything, else two; else what is impossible on this hardware."""
    if plan(spec).unknown:
        return Repairs()  # what nobody has said is no change
    workshop = _Workshop(spec)
    if not workshop.faults(()):
        return Repairs(needed=False)
    found = [change for change in workshop.singles if not workshop.faults((change,))]
    if found:
        return Repairs(tuple(Repair((change,)) for change in _nearest(found)))
    pairs = [pair for pair in workshop.pairs() if not workshop.faults(pair)]
    if pairs:
        return Repairs(tuple(map(Repair, _distinct(pairs))))
    return Repairs(impossible=tuple(workshop.impossible()))


def changed(spec: Spec, changes: Iterable[Change]) -> Spec:
    """The spec with these keys replaced."""
    return reduce(_with, changes, spec)


@dataclass(eq=False)
class _Workshop:
    """Tries changes; what was tried is remembered."""

    spec: Spec
    tried: dict[tuple[Change, ...], Mapping[str, Judgement]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.singles = list(_levers(self.spec, self.faults(())))

    def judge(self, changes: tuple[Change, ...]) -> Mapping[str, Judgement]:
        """Every plan check of the changed spec; the strategy's only where all others pass, for it
        takes a search.
        """
        if changes not in self.tried:
            spec = changed(self.spec, changes)
            planned = plan(spec)
            found = dict(judgements(spec, planned))
            wanted = spec.require.strategy
            if wanted and all(judgement.status is Status.PASS for judgement in found.values()):
                found["strategy.within"] = strategy(planned, wanted.within)
            self.tried[changes] = found
        return self.tried[changes]

    def faults(self, changes: tuple[Change, ...]) -> set[str]:
        """The keys of the plan checks that do not pass."""
        judged = self.judge(changes).items()
        return {key for key, judgement in judged if judgement.status is not Status.PASS}

    def pairs(self) -> Iterator[tuple[Change, Change]]:
        """Changes of two keys that each help, and all layouts that two sizes make."""
        useful = list(self._useful())
        for one, other in combinations(useful, 2):
            if not (one.key.startswith(other.key) or other.key.startswith(one.key)):
                yield one, other
        sizes = [change for change in self.singles if change.key in _LAYOUT]
        devices = self.spec.require.devices or self.spec.hardware.devices
        for one, other in combinations(sizes, 2):
            tried = one in useful and other in useful
            fits = changed(self.spec, (one, other)).parallel.devices == devices
            if one.key != other.key and fits and not tried:
                yield one, other

    def _useful(self) -> Iterator[Change]:
        """Changes that mend something or bring it nearer, a few for each key, and break nothing."""
        before, taken = self.faults(()), Counter[str]()
        for change in self.singles:
            after = self.faults((change,))
            if after <= before and (after < before or self._is_nearer(change, after)):
                taken[change.key] += 1
                if taken[change.key] <= _MOST_VALUES:
                    yield change

    def _is_nearer(self, change: Change, faults: set[str]) -> bool:
        old, new = self.judge(()), self.judge((change,))
        return any(_margin(new, key) > _margin(old, key) for key in faults)

    def impossible(self) -> Iterator[Impossible]:
        """What no change tried could mend, with the one that came closest."""
        for key in sorted(self.faults(())):
            judged = {changes: found for changes, found in self.tried.items() if key in found}
            if any(found[key].status is Status.PASS for found in judged.values()):
                continue
            best = max(judged, key=lambda changes: _margin(judged[changes], key))
            made = f" with {Repair(best)}" if best else ""
            closest = judged[best][key].result + made
            yield Impossible(key, judged[best][key].requirement, closest)


def _margin(judged: Mapping[str, Judgement], key: str) -> float:
    margin = judged[key].margin if key in judged else None
    return -math.inf if margin is None else margin


_LAYOUT = ("parallel.tensor", "parallel.pipeline", "parallel.data")


def _levers(spec: Spec, faults: set[str]) -> Iterator[Change]:
    """Single changes that may mend such faults, the most harmless first."""
    for index, workload in enumerate(spec.workloads):
        if f"workloads.{workload.name}.rate" in faults:
            for minutes in (1, 2, 5, 10, 20, 30, 60, 120, 240):
                longer = Duration(minutes * 60_000)
                if longer > workload.max_duration:
                    yield Change(f"workloads[{index}].max_duration", longer, workload.max_duration)
    if not faults - {f"workloads.{workload.name}.rate" for workload in spec.workloads}:
        return
    if "strategy.within" in faults:
        yield from _other_strategies(spec)
    for key, values in _values(spec).items():
        was = _value(spec, key)
        for value in sorted(values, key=lambda value: _distance(value, was)):
            if value != was:
                yield Change(key, value, was)


def _other_strategies(spec: Spec) -> Iterator[Change]:
    """The strategies that are predicted to do the most, each as a whole."""
    for one in alternatives(spec)[:_MOST_REPAIRS]:
        if one.meets_limits and not one.declared:
            yield Change("parallel", one.parallel, spec.parallel)


def _values(spec: Spec) -> Mapping[str, Iterable[Any]]:
    devices = range(1, spec.hardware.devices + 1)
    longest = max((workload.longest for workload in spec.workloads), default=1)
    wanted = spec.require.kv_cache
    longest = max(longest, (wanted.tokens_per_sequence or 1) if wanted else 1)
    lengths = [length for length in _POWERS if length >= longest]
    length = spec.serve.max_model_len
    sequences = spec.serve.max_num_seqs or 1024
    at_once = max((w.concurrency or 1 for w in spec.workloads), default=1)
    found: dict[str, Iterable[Any]] = {
        "serve.gpu_memory_utilization": _UTILIZATIONS,
        "serve.max_num_seqs": [n for n in _POWERS if at_once <= n < sequences],
        "serve.max_model_len": [n for n in lengths if length is None or n < length],
        "serve.max_num_batched_tokens": _POWERS,
        "parallel.layers": [None],
        "parallel.tensor": devices,
        "parallel.pipeline": devices,
        "parallel.data": devices,
        "parallel.expert": [True, False],
        "parallel.decode_context": [1],
        "serve.kv_cache_dtype": ["fp8"],
        "model.quantization": ["fp8"],
        "model.dtype": ["bfloat16", "float16"],
    }
    if spec.hardware.device.platform == "cpu":
        found["serve.kv_cache_memory_bytes"] = [Bytes(power * 2**20) for power in _POWERS]
        gpu_only = ("serve.gpu_memory_utilization", "serve.kv_cache_dtype", "model.quantization")
        found = {key: values for key, values in found.items() if key not in gpu_only}
    return found


def _distance(value: Any, was: Any) -> float:
    """How far a value is from what the spec says, as a factor."""
    if not isinstance(value, int | float) or not isinstance(was, int | float) or not was:
        return 0.0
    return max(value / was, was / value) if value else float("inf")


def _nearest(changes: Iterable[Change]) -> list[Change]:
    """For each key its first change; levers come in order, values from near to far."""
    firsts = {change.key: change for change in reversed(list(changes))}
    ordered = [change for change in changes if firsts[change.key] is change]
    return ordered[:_MOST_REPAIRS]


def _distinct(pairs: Iterable[tuple[Change, Change]]) -> list[tuple[Change, Change]]:
    """For each two keys their first pair."""
    firsts: dict[tuple[str, str], tuple[Change, Change]] = {}
    for one, other in pairs:
        firsts.setdefault((one.key, other.key), (one, other))
    return list(firsts.values())[:_MOST_REPAIRS]


def _parts(key: str) -> list[str | int]:
    parts: list[str | int] = []
    for part in key.split("."):
        name, _, index = part.partition("[")
        parts += [name, int(index[:-1])] if index else [name]
    return parts


def _value(spec: Spec, key: str) -> Any:
    node: Any = spec
    for part in _parts(key):
        node = node[part] if isinstance(part, int) else getattr(node, part)
    return node


def _with(spec: Spec, change: Change) -> Spec:
    def replaced(node: Any, parts: list[str | int]) -> Any:
        if not parts:
            return change.value
        part, *rest = parts
        if isinstance(part, int):
            return (*node[:part], replaced(node[part], rest), *node[part + 1 :])
        return node.model_copy(update={part: replaced(getattr(node, part), rest)})

    result: Spec = replaced(spec, _parts(change.key))
    return result
