"""The KV cache as vLLM lays it out: groups of layers, pages, blocks, and what a sequence takes.

Mirrors vLLM 0.32 (v1/core/kv_cache_utils.py, v1/kv_cache_interface.py).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.plan.tensors import Attention
from pytest_llmdeploy.spec import Spec

# How many times as many layers of one kind there may be for one group to hold all of them.
_NEARLY_EQUAL = 1.5


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share one block table; `layers` are their indexes, from 0."""

    attention: Attention
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """What decides how many blocks a sequence takes.

    `in_flight` are the tokens that may be scheduled and not yet settled: layers that forget what
    leaves their window keep them for so long.
    """

    block_size: int
    in_flight: int
    decode_context: int = 1

    def blocks(self, attention: Attention, tokens: int) -> int:
        """Blocks that a sequence of `tokens` holds in a group of this kind of attention."""
        match attention.kind:
            case "sliding":
                kept = min(attention.window - 1 + self.in_flight, tokens)
                # The window need not begin at the beginning of a block.
                return -(-kept // self.block_size) + 1
            case "chunked":
                return -(-min(attention.window + self.in_flight, tokens) // self.block_size)
        return math.ceil(math.ceil(tokens / self.decode_context) / self.block_size)


@dataclass(frozen=True, slots=True)
class KvCache:
    """The KV cache of one data-parallel copy. `tokens` and `max_concurrency` are as vLLM prints
    them; `blocks_range` says how far they move with what is only known in ranges.
    """

    tokens: int
    max_concurrency: float
    blocks_range: tuple[int, int]
    groups: tuple[Group, ...]
    paging: Paging

    @property
    def block_size(self) -> int:
        return self.paging.block_size

    @property
    def blocks(self) -> int:
        return sum(self.blocks_range) // 2

    def blocks_per_sequence(self, tokens: int) -> int:
        """Blocks that a sequence of `tokens` holds, in all groups together."""
        return blocks_per_sequence(self.groups, self.paging, tokens)

    def sequences(self, tokens: int) -> tuple[int, int]:
        """How many sequences of so many tokens it holds at once, at least and at most."""
        low, high = self.blocks_range
        taken = self.blocks_per_sequence(tokens)
        return low // taken, high // taken

    def longest(self, limit: int) -> int:
        """The longest sequence up to `limit` tokens for which vLLM starts; 0 if there is none.

        The block that vLLM keeps back is not to be had.
        """
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_per_sequence(middle) <= self.blocks - 1:
                low = middle
            else:
                high = middle - 1
        return low


def layer_groups(kinds: tuple[Attention, ...], *, hybrid: bool) -> tuple[Group, ...]:
    """The groups of a model whose layers have attention of these `kinds`.

    Without the hybrid manager, layers with a window are given room as if they had none, as soon
    as there is one layer without.
    """
    by_kind: dict[Attention, list[int]] = {}
    for index, attention in enumerate(kinds):
        by_kind.setdefault(attention, []).append(index)
    windowless = [attention for attention in by_kind if not attention.window]
    if len(by_kind) == 1 or (windowless and not hybrid):
        return (Group((windowless or list(by_kind))[0], tuple(range(len(kinds)))),)
    counts = [len(layers) for layers in by_kind.values()]
    size = max(counts) if max(counts) < min(counts) * _NEARLY_EQUAL else min(counts)
    return tuple(
        Group(attention, tuple(layers[start :: math.ceil(len(layers) / size)]))
        for attention, layers in by_kind.items()
        for start in range(math.ceil(len(layers) / size))
    )


def groups_of(spec: Spec, shape: ModelShape) -> tuple[Group, ...]:
    """The groups that vLLM makes for `spec`; chunked attention needs the hybrid manager allowed
    (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE, on by default).
    """
    allowed = spec.serve.env.get("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE")
    hybrid = not spec.serve.disable_hybrid_kv_cache_manager
    kinds = tuple(layer.attention for layer in shape.layers)
    if allowed is not None and allowed.text == "0":
        hybrid = hybrid and not any(attention.kind == "chunked" for attention in kinds)
    return layer_groups(kinds, hybrid=hybrid)


def blocks_per_sequence(groups: Iterable[Group], paging: Paging, tokens: int) -> int:
    """Blocks that a sequence of `tokens` holds, in all groups together."""
    return sum(paging.blocks(group.attention, tokens) for group in groups)


def bytes_per_token(attention: Attention, tensor: int, width: float) -> float:
    """Bytes that one token takes in one layer on a rank; latent (MLA) caches are not split."""
    heads = 1 if attention.kind == "mla" else max(1, attention.kv_heads // tensor)
    return heads * (attention.head_size + attention.value_size) * width


def stage_bytes_per_token(
    groups: Sequence[Group], span: tuple[int, int], tensor: int, width: float
) -> float:
    """Bytes that a block takes for each of its tokens on the stage with the layers of `span`:
    the groups share the pool, so the largest counts.
    """
    first, last = span
    return max(
        (bisect_right(group.layers, last) - bisect_left(group.layers, first))
        * bytes_per_token(group.attention, tensor, width)
        for group in groups
    )
