"""`plan(spec)`: total for a valid spec, and without network, GPU or clock."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from pytest_llmdeploy.plan.kv_cache import Group, KvCache, groups_of
from pytest_llmdeploy.plan.latency import Prediction, Predictor
from pytest_llmdeploy.plan.layout import (
    Place,
    Stage,
    declared_partition,
    experts_held,
    partition,
    places,
    stages,
)
from pytest_llmdeploy.plan.limits import max_model_len, paging
from pytest_llmdeploy.plan.memory import MemoryUse, memory_use, resolved_dtype
from pytest_llmdeploy.plan.model import Plan, Rank, Violation
from pytest_llmdeploy.plan.rules import broken_rules
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_of
from pytest_llmdeploy.plan.sizes import Sizes
from pytest_llmdeploy.plan.workload import default_predictor, predictions
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.units import show

_PLACE = fields(Place)


def plan(spec: Spec) -> Plan:
    """The plan of `spec`; what can't be known or can't work is said in it, never raised."""
    try:
        shape = shape_of(spec)
    except ShapeUnknownError as error:
        return _bare(spec, None, list(broken_rules(spec, None)), str(error))
    if violations := list(broken_rules(spec, shape)):
        return _bare(spec, shape, violations)
    sized = Sized.of(spec, shape)
    if violations := list(sized.violations()):
        return _bare(spec, shape, violations)
    return Plan(
        spec=spec,
        devices=spec.parallel.devices,
        available=spec.hardware.devices,
        parameters=shape.parameters,
        ranks=tuple(sized.ranks()),
        violations=(),
        kv_cache=sized.kv_cache,
        max_model_len=max_model_len(spec, shape),
        stage_layers=sized.counts,
        shape=shape,
        needed_utilization=sized.needed_utilization(),
        prediction=predictions(default_predictor(), spec, sized),
    )


def second_opinion(predictor: Predictor, found: Plan) -> Mapping[str, Prediction]:
    """What another predictor says of every workload; nothing of a plan that can't be."""
    if found.shape is None or not found.is_feasible:
        return {}
    return predictions(predictor, found.spec, Sized.of(found.spec, found.shape))


def layers_per_stage(spec: Spec, shape: ModelShape | None) -> tuple[int, ...] | None:
    """What the spec declares, else vLLM's own partition; None without a shape."""
    declared = declared_partition(spec)
    if declared is not None or shape is None:
        return declared
    return partition(len(shape.layers), spec.parallel.pipeline)


@dataclass(frozen=True, eq=False)
class Sized:
    """A deployment that breaks no rule, with its bytes. Ranks of one stage that hold as many
    experts are alike and are calculated once.
    """

    spec: Spec
    sizes: Sizes
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, spec: Spec, shape: ModelShape) -> Self:
        return cls(spec, Sizes(shape, resolved_dtype(spec, shape)), groups_of(spec, shape))

    @property
    def shape(self) -> ModelShape:
        return self.sizes.shape

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return layers_per_stage(self.spec, self.shape) or ()

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return stages(self.counts)

    @cached_property
    def expert_loads(self) -> tuple[int | None, ...]:
        """The different numbers of routed experts that ranks hold, the most first."""
        experts, parallel = self.shape.experts, self.spec.parallel
        ends = (0, parallel.expert_size - 1)
        return tuple(dict.fromkeys(experts_held(parallel, experts, ep) for ep in ends))

    @cached_property
    def different_stages(self) -> Mapping[Hashable, Stage]:
        """One of each kind of stage, by what makes them alike."""
        return {self.sizes.alike(stage): stage for stage in reversed(self.stages)}

    @cached_property
    def uses(self) -> Mapping[tuple[Hashable, int | None], MemoryUse]:
        """Memory by kind of stage and experts held."""
        return {
            (kind, held): memory_use(self.spec, self.sizes, self.groups, stage, held)
            for kind, stage in self.different_stages.items()
            for held in self.expert_loads
        }

    @cached_property
    def kv_cache(self) -> KvCache | None:
        """VLLM gives every rank the blocks of the one that has the fewest
        (v1/core/kv_cache_utils.py: get_kv_cache_configs).
        """
        pools = [pool for use in self.uses.values() if (pool := use.kv_blocks) is not None]
        if not pools:
            return None
        low, high = min(pool[0] for pool in pools), min(pool[1] for pool in pools)
        cache = KvCache(0, 0, (low, high), self.groups, paging(self.spec, self.shape))
        length = max_model_len(self.spec, self.shape)
        concurrency = cache.blocks / cache.blocks_per_sequence(length)
        tokens = int(concurrency * length)
        return KvCache(tokens, concurrency, cache.blocks_range, cache.groups, cache.paging)

    @property
    def max_model_len(self) -> int:
        return max_model_len(self.spec, self.shape)

    def violations(self) -> Iterator[Violation]:
        """What can't fit even if everything that is only known in ranges turns out small."""
        (kind, _), use = max(
            self.uses.items(), key=lambda item: item[1].weights + item[1].activation[0]
        )
        fixed = use.weights + use.activation[0]
        cache, length = self.kv_cache, max_model_len(self.spec, self.shape)
        if use.requested is not None and fixed > use.requested:
            message = (
                f"stage {self.different_stages[kind].index}: {show(use.weights, 'B')} of weights "
                f"and at least {show(use.activation[0], 'B')} of activations do not fit into the "
                f"{show(use.requested, 'B')} that gpu_memory_utilization gives vLLM"
            )
            yield Violation("weights_fit", "hardware", message, "determine_available_memory")
        elif cache and cache.blocks_range[1] - 1 < cache.blocks_per_sequence(length):
            longest = cache.longest(length)
            message = f"the KV cache does not hold one sequence of max_model_len {length:,} tokens"
            message += f": {longest:,} fit" if longest else ": none fits"
            source = "check_enough_kv_cache_memory"
            yield Violation("kv_cache_fits", "serve.max_model_len", message, source)

    def needed_utilization(self) -> float | None:
        """The least gpu_memory_utilization with which the declared sequences fit, or one."""
        visible = self.spec.hardware.device.visible_bytes
        if visible is None or self.spec.hardware.device.platform == "cpu" or not self.kv_cache:
            return None
        length = max_model_len(self.spec, self.shape)
        wanted = self.spec.require.kv_cache
        sequences = wanted.concurrent_sequences if wanted else 1
        tokens = (wanted.tokens_per_sequence if wanted else None) or length
        blocks = max(
            sequences * self.kv_cache.blocks_per_sequence(tokens),
            self.kv_cache.blocks_per_sequence(length) + 1,
        )
        most = max(u.weights + u.activation[1] + blocks * u.block for u in self.uses.values())
        return most / visible

    def ranks(self) -> Iterator[Rank]:
        for place in places(self.spec, self.counts):
            held = experts_held(self.spec.parallel, self.shape.experts, place.ep)
            yield self._rank(place, held)

    def _rank(self, place: Place, held: int | None) -> Rank:
        use, cache = self.uses[self.sizes.alike(self.stages[place.pp]), held], self.kv_cache
        total, used = self.spec.hardware.device.total_bytes, use.requested
        if self.spec.hardware.device.platform == "cpu" and use.kv_available:
            used = use.weights + use.activation[1] + use.kv_available[1]
        return Rank(
            **_coordinates(place),
            weights_bytes=use.weights,
            kv_bytes_per_token=round(use.kv_per_token),
            kv_blocks=cache.blocks if cache else None,
            kv_tokens=cache.blocks * cache.block_size if cache else None,
            activation_bytes=use.activation,
            used_bytes=used,
            headroom_bytes=total - used if total is not None and used is not None else None,
            experts=held,
        )


def _coordinates(place: Place) -> dict[str, Any]:
    return {field.name: getattr(place, field.name) for field in _PLACE}


def _bare(
    spec: Spec, shape: ModelShape | None, violations: Sequence[Violation], unknown: str = ""
) -> Plan:
    """A plan without bytes: of what is not known, or can't be."""
    counts = layers_per_stage(spec, shape)
    return Plan(
        spec=spec,
        devices=spec.parallel.devices,
        available=spec.hardware.devices,
        parameters=shape.parameters if shape else None,
        ranks=tuple(Rank(**_coordinates(place)) for place in places(spec, counts)),
        violations=tuple(violations),
        kv_cache=None,
        max_model_len=max_model_len(spec, shape) if shape else spec.serve.max_model_len,
        stage_layers=counts,
        shape=shape,
        unknown=unknown,
    )
