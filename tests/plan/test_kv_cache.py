"""Groups of layers, and the blocks that sequences take. tests/live compares with a real vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.kv_cache import (
    Group,
    KvCache,
    Paging,
    bytes_per_token,
    layer_groups,
    stage_bytes_per_token,
)
from pytest_llmdeploy.plan.tensors import Attention
from tests.plan.deployments import tiny

FULL = Attention(kind="full", heads=8, kv_heads=4, head_size=64, value_size=64)
SLIDING = replace(FULL, kind="sliding", window=1024)
CHUNKED = replace(FULL, kind="chunked", window=4096)
LATENT = Attention(kind="mla", heads=16, kv_heads=1, head_size=576, value_size=0)
PAGING = Paging(block_size=16, in_flight=100)


def sizes(kinds: list[Attention], *, hybrid: bool = True) -> list[tuple[str, int]]:
    """Kind and number of layers of every group."""
    groups = layer_groups(tuple(kinds), hybrid=hybrid)
    return [(group.attention.kind, len(group.layers)) for group in groups]


class TestGroups:
    """Layers of one kind share a block table, as many of each as there are of the rarest."""

    def test_one_kind_is_one_group(self) -> None:
        """A model without windows, or with the same window everywhere, has one group."""
        assert sizes([FULL] * 7) == [("full", 7)]
        assert sizes([SLIDING] * 7) == [("sliding", 7)]

    def test_the_rarest_kind_sets_the_size(self) -> None:
        """Five sliding layers for each full one, as in Gemma 3: six groups."""
        kinds = ([SLIDING] * 5 + [FULL]) * 4
        assert sizes(kinds) == [("sliding", 4)] * 5 + [("full", 4)]

    def test_the_last_groups_have_fewer(self) -> None:
        """What does not divide leaves groups with a layer less, whose room is lost."""
        assert sizes([SLIDING] * 5 + [FULL] * 2) == [("sliding", 2)] * 2 + [
            ("sliding", 1),
            ("full", 2),
        ]

    def test_nearly_equal_kinds_are_not_split(self) -> None:
        """13 full and 12 sliding layers are two groups of 13, not 25 of one."""
        assert sizes([SLIDING, FULL] * 12 + [FULL]) == [("sliding", 12), ("full", 13)]

    def test_layers_are_dealt_in_turn(self) -> None:
        """Each pipeline stage gets layers of every group."""
        groups = layer_groups((FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING), hybrid=True)
        assert [group.layers for group in groups] == [(0, 3), (1, 4), (2, 5)]

    def test_without_the_hybrid_manager(self) -> None:
        """Windows save nothing any more, where there is a layer without one."""
        assert sizes([SLIDING, FULL] * 3, hybrid=False) == [("full", 6)]
        assert sizes([SLIDING, CHUNKED] * 3, hybrid=False) == [("sliding", 3), ("chunked", 3)]

    @given(st.lists(st.sampled_from([FULL, SLIDING, CHUNKED]), min_size=1, max_size=80))
    def test_no_layer_is_lost(self, kinds: list[Attention]) -> None:
        """Every layer is in one group of its own kind."""
        groups = layer_groups(tuple(kinds), hybrid=True)
        dealt = [(index, group.attention) for group in groups for index in group.layers]
        assert sorted(dealt, key=lambda item: item[0]) == list(enumerate(kinds))


class TestBlocks:
    """What a sequence holds."""

    @pytest.mark.parametrize(
        ("attention", "tokens", "blocks"),
        [
            (FULL, 1, 1),
            (FULL, 16, 1),
            (FULL, 17, 2),
            (SLIDING, 16, 2),
            (SLIDING, 100_000, -(-(1023 + 100) // 16) + 1),
            (CHUNKED, 16, 1),
            (CHUNKED, 100_000, -(-(4096 + 100) // 16)),
        ],
    )
    def test_by_kind(self, attention: Attention, tokens: int, blocks: int) -> None:
        """A window holds itself and what is in flight, and may begin within a block."""
        assert PAGING.blocks(attention, tokens) == blocks

    def test_decode_context_parallelism(self) -> None:
        """Each of four ranks holds a fourth of the tokens."""
        assert replace(PAGING, decode_context=4).blocks(FULL, 65) == 2

    @given(st.sampled_from([FULL, SLIDING, CHUNKED]), st.integers(1, 50_000), st.integers(1, 999))
    def test_longer_takes_no_less(self, attention: Attention, tokens: int, more: int) -> None:
        """Blocks never decrease with length."""
        assert PAGING.blocks(attention, tokens) <= PAGING.blocks(attention, tokens + more)


class TestCache:
    """Capacity of a cache with a known number of blocks."""

    def cache(self, blocks: int, *groups: Attention) -> KvCache:
        return KvCache(0, 0, (blocks, blocks), tuple(Group(g, (0,)) for g in groups), PAGING)

    def test_the_longest_sequence(self) -> None:
        """One block is kept back: of ten, nine hold a sequence."""
        assert self.cache(10, FULL).longest(10_000) == 144
        assert self.cache(10, FULL).longest(100) == 100
        assert self.cache(1, FULL).longest(100) == 0

    def test_windows_make_long_sequences_cheap(self) -> None:
        """Three windowed groups and a full one hold more than four full ones."""
        windowed = self.cache(4000, SLIDING, SLIDING, SLIDING, FULL).sequences(8192)
        assert windowed[0] > self.cache(4000, FULL, FULL, FULL, FULL).sequences(8192)[0]


@pytest.mark.parametrize(
    ("attention", "tensor", "width", "size"),
    [
        (FULL, 1, 2, 4 * 128 * 2),
        (FULL, 2, 2, 2 * 128 * 2),
        (FULL, 8, 2, 128 * 2),
        (FULL, 1, 1, 4 * 128),
        (LATENT, 8, 2, 576 * 2),
    ],
)
def test_bytes_per_token(attention: Attention, tensor: int, width: int, size: int) -> None:
    """KV heads are split, then replicated; a latent cache is on every rank whole."""
    assert bytes_per_token(attention, tensor, width) == size


def test_the_largest_group_counts() -> None:
    """The groups share the pool: a block is as large as the group with the most layers."""
    groups = layer_groups((FULL, SLIDING, SLIDING, SLIDING), hybrid=True)
    assert stage_bytes_per_token(groups, (0, 3), 1, 2) == 1 * 1024
    assert stage_bytes_per_token(layer_groups((FULL,) * 4, hybrid=True), (1, 2), 1, 2) == 2 * 1024


def test_a_fixed_cache_is_exact() -> None:
    """Without ranges there is one number of blocks."""
    cache = plan(tiny()).kv_cache
    assert cache is not None
    assert cache.blocks_range == (1024, 1024)
