"""Every strategy that the hardware allows, the best first, and why the others lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from pytest_llmdeploy.plan.goal import Goal
from pytest_llmdeploy.plan.latency import Estimate, Prediction
from pytest_llmdeploy.plan.layout import Stage, partition
from pytest_llmdeploy.plan.model import prediction_json
from pytest_llmdeploy.plan.planner import Sized
from pytest_llmdeploy.plan.rules import broken_rules, layout_rules
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_of
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import show


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A strategy: whether it can work, what it is predicted to do, and its place (1 is the best).

    `throughput` is in requests/s for each device of the hardware, within the latency limits;
    `regret` is the fraction of the best one's throughput that is lost; `reasons` say why it can't
    work, or why it lost.
    """

    parallel: Parallel
    feasible: bool
    reasons: tuple[str, ...] = ()
    prediction: Prediction | None = None
    throughput: Estimate | None = None
    meets_limits: bool = False
    place: int | None = None
    regret: float | None = None
    declared: bool = False

    def to_json(self) -> dict[str, Any]:
        """An entry of `alternatives` in the report."""
        found = self.prediction
        return {
            "parallel": self.parallel.model_dump(mode="json"),
            "feasible": self.feasible,
            "reasons": list(self.reasons),
            "prediction": found and prediction_json(found),
            "throughput": self.throughput and asdict(self.throughput),
            "meets_limits": self.meets_limits,
            "place": self.place,
            "regret": self.regret,
            "declared": self.declared,
        }


def alternatives(spec: Spec) -> tuple[Alternative, ...]:
    """All legal strategies on the spec's hardware, ranked, then those that can't work.

    A strategy that has room for more data-parallel copies is considered with all of them. Empty
    for a model whose shape is not known.
    """
    try:
        shape = shape_of(spec)
    except ShapeUnknownError:
        return ()
    return _Search(spec, shape).ranked()


def declared(found: tuple[Alternative, ...]) -> Alternative | None:
    """The strategy of the spec itself."""
    return next((alternative for alternative in found if alternative.declared), None)


@dataclass(frozen=True, eq=False)
class _Search:
    spec: Spec
    shape: ModelShape

    @cached_property
    def own(self) -> Sized:
        return Sized.of(self.spec, self.shape)

    @cached_property
    def goal(self) -> Goal | None:
        return Goal.of(self.spec)

    def ranked(self) -> tuple[Alternative, ...]:
        found = [self._alternative(parallel) for parallel in self._candidates()]
        feasible = [alternative for alternative in found if alternative.feasible]
        feasible.sort(key=_order)
        refused = sorted(
            (one for one in found if not one.feasible), key=lambda one: not one.declared
        )
        best = feasible[0] if feasible else None
        places = (_placed(one, index, best) for index, one in enumerate(feasible, start=1))
        return (*places, *refused)

    def _candidates(self) -> Iterator[Parallel]:
        yield self.spec.parallel
        given = self.spec.parallel.model_dump()
        for parallel in self._legal():
            if parallel.model_dump() != given:
                yield parallel

    def _legal(self) -> Iterator[Parallel]:
        """TP × PP × EP × DCP, each with as many copies as fit; of a TP that breaks a rule by
        itself, that one.
        """
        devices = self.spec.hardware.devices
        for tensor in range(1, devices + 1):
            alone = Parallel(tensor=tensor)
            if any(layout_rules(self.spec, self.shape, alone)):
                # Whatever else is chosen, it stays broken.
                yield alone
                continue
            for pipeline in range(1, min(devices // tensor, len(self.shape.layers)) + 1):
                copies = devices // (tensor * pipeline)
                yield from self._variants(tensor, pipeline, copies)

    def _variants(self, tensor: int, pipeline: int, copies: int) -> Iterator[Parallel]:
        experts = (False, True) if self.shape.experts and tensor * copies > 1 else (False,)
        splits = dict.fromkeys((None, self._levelled(tensor, pipeline)))
        for layers in splits:
            for expert in experts:
                plain = Parallel(
                    tensor=tensor, pipeline=pipeline, data=copies, expert=expert, layers=layers
                )
                yield plain
                if layers is None:
                    yield from self._decode_contexts(plain)

    def _decode_contexts(self, plain: Parallel) -> Iterator[Parallel]:
        for size in range(2, plain.tensor + 1):
            if plain.tensor % size == 0:
                parallel = plain.model_copy(update={"decode_context": size})
                if not any(layout_rules(self.spec, self.shape, parallel)):
                    yield parallel

    def _levelled(self, tensor: int, pipeline: int) -> tuple[int, ...] | None:
        """Layers per stage such that the head weighs as much as the layers it takes the place of;
        None where that is what vLLM does by itself.
        """
        count = len(self.shape.layers)
        if pipeline == 1:
            return None
        layer = self.own.sizes.stage(Stage(1, 3, (0, count - 1)), tensor, 1)
        held = self.shape.experts
        each = (layer.dense + layer.expert * held) / count
        head = self.own.sizes.ends(tensor, first=False, last=True).dense / each
        last = max(1, round((count + head) / pipeline - head))
        if last * pipeline >= count:
            return None
        split = (*partition(count - last, pipeline - 1), last)
        return None if split == partition(count, pipeline) else split

    def _alternative(self, parallel: Parallel) -> Alternative:
        own = parallel is self.spec.parallel
        spec = self.spec if own else self.spec.model_copy(update={"parallel": parallel})
        broken = list(broken_rules(spec, self.shape) if own else self._broken(spec))
        if broken:
            return Alternative(
                parallel=parallel, feasible=False, reasons=tuple(map(str, broken)), declared=own
            )
        sized = Sized(spec, self.own.sizes, self.own.groups)
        reasons = (*map(str, sized.violations()), *_too_few_sequences(sized))
        if reasons or self.goal is None:
            return Alternative(
                parallel=parallel, feasible=not reasons, reasons=reasons, declared=own
            )
        point = self.goal.best_point(sized)
        return Alternative(
            parallel=parallel,
            feasible=True,
            reasons=(point.problem,) if point.problem else (),
            prediction=point.prediction,
            throughput=point.throughput,
            meets_limits=not point.problem,
            declared=own,
        )

    def _broken(self, spec: Spec) -> Iterator[object]:
        yield from layout_rules(self.spec, self.shape, spec.parallel)
        if spec.parallel.devices > spec.hardware.devices:
            yield f"{spec.parallel} needs more than {spec.hardware.devices} devices"


def _too_few_sequences(sized: Sized) -> Iterator[str]:
    """The declared concurrency is a part of the goal: who does not hold it can't win."""
    wanted, cache = sized.spec.require.kv_cache, sized.kv_cache
    if wanted is None or cache is None:
        return
    tokens = wanted.tokens_per_sequence or sized.max_model_len
    held = cache.sequences(tokens)[1] * sized.spec.parallel.data
    if held < wanted.concurrent_sequences:
        yield f"the KV cache holds {held:,} of {wanted.concurrent_sequences:,} × {tokens:,} tokens"


def _order(alternative: Alternative) -> tuple[bool, float, int]:
    speed = alternative.throughput.value if alternative.throughput else 0.0
    return not alternative.meets_limits, -speed, alternative.parallel.devices


def _placed(one: Alternative, place: int, best: Alternative | None) -> Alternative:
    if one.throughput is None or best is None or best.throughput is None:
        return replace(one, place=place if one.throughput else None)
    regret = 1 - one.throughput.value / best.throughput.value if best.throughput.value else 0.0
    regret = max(0.0, regret)
    lost = () if place == 1 or one.reasons else (f"{show(regret, 'fraction')} fewer requests/s",)
    return replace(one, place=place, regret=regret, reasons=(*one.reasons, *lost))
