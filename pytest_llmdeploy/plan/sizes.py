"""Sizes of a model's weights on a rank, for any strategy: what the plan and the search add up."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from pytest_llmdeploy.plan.layout import Stage
from pytest_llmdeploy.plan.shape import DTYPE_BYTES, ModelShape
from pytest_llmdeploy.plan.tensors import Layer, Sharding, Tensor


class Size(NamedTuple):
    """Bytes and elements on one rank: of what every token uses, and of one routed expert."""

    dense: int = 0
    expert: int = 0
    dense_elements: int = 0
    expert_elements: int = 0

    def plus(self, other: Size) -> Size:
        return Size(*map(operator.add, self, other))

    def minus(self, other: Size) -> Size:
        return Size(*map(operator.sub, self, other))


@dataclass(frozen=True, eq=False)
class Sizes:
    """The weights of one model in one dtype; every sum is calculated once."""

    shape: ModelShape
    dtype: str
    _prefixes: dict[tuple[int, int], list[Size]] = field(default_factory=dict)
    _ends: dict[tuple[int, bool, bool], Size] = field(default_factory=dict)
    _widest: dict[int, float] = field(default_factory=dict)

    @cached_property
    def kinds(self) -> Mapping[int, Layer]:
        """The different layers, by their identity."""
        return {id(layer): layer for layer in self.shape.layers}

    def alike(self, stage: Stage) -> Hashable:
        """Stages with the same key hold the same; known only where all layers are alike."""
        if len(self.kinds) > 1:
            return stage.index
        return stage.is_first, stage.is_last, stage.depth

    def widest(self, tensor: int) -> float:
        """Features of the widest pair of projections that are calculated at once on a rank."""
        if tensor not in self._widest:
            rows = (
                2 * weight.rows / tensor
                for layer in self.kinds.values()
                for weight in layer.tensors
                if weight.split == "rows" and not weight.experts
            )
            self._widest[tensor] = max(rows, default=float(self.shape.hidden))
        return self._widest[tensor]

    def stage(self, stage: Stage, tensor: int, expert_tensor: int) -> Size:
        """The layers of `stage`, and what is before the first and behind the last of all."""
        first, last = stage.layers or (0, -1)
        sums = self._sums(tensor, expert_tensor)
        layers = sums[last + 1].minus(sums[first])
        return layers.plus(self.ends(tensor, first=stage.is_first, last=stage.is_last))

    def ends(self, tensor: int, *, first: bool, last: bool) -> Size:
        """What a stage holds beside its layers: towers, tables, embedding, norm and head."""
        key = (tensor, first, last)
        if key not in self._ends:
            shape, found = self.shape, [*self.shape.everywhere]
            if first:
                found += [*shape.towers]
            if first or (last and shape.tied):
                found += [*shape.embedding]
            if last:
                found += [*shape.head]
            self._ends[key] = self._size(found, tensor, 1)
        return self._ends[key]

    def embedding(self, tensor: int) -> Size:
        """The table of embeddings, of which a step reads only its tokens' rows."""
        return self._size(self.shape.embedding, tensor, 1)

    def _sums(self, tensor: int, expert_tensor: int) -> list[Size]:
        """What the first n layers have together, by n."""
        key = (tensor, expert_tensor)
        if key not in self._prefixes:
            of_kind = {
                kind: self._size(layer.tensors, tensor, expert_tensor)
                for kind, layer in self.kinds.items()
            }
            sizes = (of_kind[id(layer)] for layer in self.shape.layers)
            self._prefixes[key] = list(accumulate(sizes, Size.plus, initial=Size()))
        return self._prefixes[key]

    def _size(self, tensors: Iterable[Tensor], tensor: int, expert_tensor: int) -> Size:
        one = Sharding(tensor=tensor, expert_tensor=expert_tensor, experts=1)
        dense = expert = dense_elements = expert_elements = 0
        for weight in tensors:
            rows, columns, copies = weight.shard(one)
            size = self._stored(weight, rows, columns, copies)
            elements = 0 if weight.made else rows * columns * copies
            if weight.experts:
                expert, expert_elements = expert + size, expert_elements + elements
            else:
                dense, dense_elements = dense + size, dense_elements + elements
        return Size(dense, expert, dense_elements, expert_elements)

    def _stored(self, tensor: Tensor, rows: int, columns: int, copies: int) -> int:
        if tensor.quantized and self.shape.quantization is not None:
            return self.shape.quantization.stored_bytes(rows, columns, copies)
        return rows * columns * copies * DTYPE_BYTES[self.dtype]
