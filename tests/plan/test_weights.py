"""Weights and KV cache per rank: exact, against published figures and against the whole model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.plan import ModelShape, plan
from pytest_llmdeploy.plan.layout import partition, places
from pytest_llmdeploy.plan.memory import memory_use
from pytest_llmdeploy.spec import Spec
from tests.plan.deployments import CONFIG, made, tiny, with_config

GIB = 1024**3


def bare(tp: int, pp: int = 1) -> Spec:
    """Llama-3-70B in 16 bits on so many very large devices."""
    return made(
        hardware={"device": {"name": "big", "memory": "400GiB"}, "devices_per_node": tp * pp},
        parallel={"tensor": tp, "pipeline": pp},
    )


def test_parameters_of_llama_3_70b() -> None:
    """The published count, to the last parameter."""
    assert plan(bare(1)).parameters == 70_553_706_496


@pytest.mark.parametrize(
    ("tp", "gib", "kv_bytes"),
    [
        (1, 131.417, 327_680),
        (2, 65.709, 163_840),
        (4, 32.856, 81_920),
        (8, 16.429, 40_960),
        # Beyond the KV heads they are replicated: no token gets cheaper.
        (16, 8.372, 40_960),
    ],
)
def test_bytes_per_gpu_of_llama_3_70b(tp: int, gib: float, kv_bytes: int) -> None:
    """Weights and KV bytes per token on every GPU are those that vLLM loads."""
    ranks = plan(bare(tp)).ranks
    assert {round((rank.weights_bytes or 0) / GIB, 3) for rank in ranks} == {gib}
    assert {rank.kv_bytes_per_token for rank in ranks} == {kv_bytes}


def test_stages_carry_their_own_layers_only() -> None:
    """The first stage has the embedding, the last the head and the final norm, the middle none."""
    first, second, third, last = plan(bare(1, 4)).ranks
    embedding, norm = 128_256 * 8192 * 2, 8192 * 2
    assert second.weights_bytes == third.weights_bytes
    assert (first.weights_bytes or 0) - (second.weights_bytes or 0) == embedding
    assert (last.weights_bytes or 0) - (second.weights_bytes or 0) == embedding + norm
    assert {rank.kv_bytes_per_token for rank in (first, last)} == {327_680 // 4}


@pytest.mark.parametrize(
    ("cache_dtype", "bytes_per_token"), [("auto", 40_960), ("fp8", 20_480), ("fp8_e5m2", 20_480)]
)
def test_kv_cache_dtype(cache_dtype: str, bytes_per_token: int) -> None:
    """An fp8 cache takes one byte for each number, whatever the weights take."""
    spec = made(serve={"kv_cache_dtype": cache_dtype})
    assert plan(spec).ranks[0].kv_bytes_per_token == bytes_per_token


@pytest.mark.parametrize(
    ("asked", "checkpoint", "width"),
    [("auto", "bfloat16", 2), ("auto", "float32", 2), ("float32", "bfloat16", 4)],
)
def test_dtype_of_the_weights(tmp_path: Path, asked: str, checkpoint: str, width: int) -> None:
    """The spec's dtype decides; `auto` is the checkpoint's, and halves float32."""
    config = {**CONFIG, "torch_dtype": checkpoint}
    changes = {"model": {"dtype": asked}, "parallel": {"tensor": 1}}
    found = plan(with_config(tmp_path / "config.json", config, **changes))
    assert found.parameters is not None
    assert found.ranks[0].weights_bytes == found.parameters * width


SHAPES = st.builds(
    ModelShape,
    model_type=st.just("llama"),
    hidden=st.sampled_from([64, 256, 1536]),
    intermediate=st.sampled_from([128, 704]),
    layers=st.integers(1, 13),
    heads=st.sampled_from([16, 32]),
    kv_heads=st.sampled_from([8, 16]),
    head_size=st.sampled_from([16, 96]),
    vocab=st.integers(1, 2000),
    positions=st.just(4096),
    tied=st.booleans(),
    qkv_bias=st.booleans(),
    output_bias=st.booleans(),
    mlp_bias=st.booleans(),
    qk_norm=st.booleans(),
    dtype=st.just("bfloat16"),
)


@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.integers(1, 6))
def test_all_ranks_together_hold_the_model(shape: ModelShape, tp: int, pp: int) -> None:
    """The weights of all ranks, less what each rank has a copy of, are the padded model."""
    pp = min(pp, shape.layers)
    spec = bare(tp, pp)
    stages = partition(shape.layers, pp)
    held = sum(memory_use(spec, shape, place).weights for place in places(spec, stages)) // 2
    # Norms, and biases that are added after the all-reduce, are on every rank.
    per_layer = shape.hidden * (2 + shape.output_bias + shape.mlp_bias)
    per_layer += 2 * shape.head_size * shape.qk_norm
    copies = (tp - 1) * (shape.layers * per_layer + shape.hidden)
    # A tied embedding is also the head, which is on another stage.
    shared = shape.padded_vocab * shape.hidden if shape.tied and pp > 1 else 0
    padded = dataclasses.replace(shape, vocab=shape.padded_vocab)
    assert held - copies - shared == padded.parameters


@given(SHAPES, st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_kv_heads_are_split_then_replicated(shape: ModelShape, tp: int) -> None:
    """No rank is without a KV head, and no more are held than splitting allows."""
    assert shape.kv_heads_per_rank(tp) == max(1, math.ceil(shape.kv_heads / tp))


class TestTiny:
    """The CPU deployment: its KV cache is fixed in bytes, so every figure is exact."""

    def test_blocks_tokens_and_concurrency(self) -> None:
        """256 MiB per rank hold 1,024 blocks of 128 tokens: 256 sequences of 512 tokens."""
        found = plan(tiny())
        assert {rank.kv_blocks for rank in found.ranks} == {1024}
        assert {rank.kv_tokens for rank in found.ranks} == {131_072}
        assert found.kv_cache is not None
        assert (found.kv_cache.tokens, found.kv_cache.max_concurrency) == (131_072, 256)

    @pytest.mark.parametrize(("tokens", "sequences"), [(512, 256), (513, 204), (1, 1024)])
    def test_a_sequence_takes_whole_blocks(self, tokens: int, sequences: int) -> None:
        """One token more than four blocks takes five."""
        cache = plan(tiny()).kv_cache
        assert cache is not None
        assert cache.sequences(tokens) == (sequences, sequences)

    def test_the_variable_wins_over_the_flag(self) -> None:
        """VLLM_CPU_KVCACHE_SPACE is in GiB, and is what vLLM takes on the CPU."""
        found = plan(tiny(serve={"env": {"VLLM_CPU_KVCACHE_SPACE": 1}}))
        assert found.ranks[0].kv_blocks == 4096

    def test_the_smallest_pool_counts_for_all(self) -> None:
        """With uneven stages every rank gets the blocks of the one that has the fewest."""
        hardware = {"devices_per_node": 2}
        spec = tiny(hardware=hardware, parallel={"tensor": 1, "pipeline": 2, "layers": [1, 3]})
        first, last = plan(spec).ranks
        # 3 layers × 2 (K, V) × 2 heads × 64 × 4 bytes = 3072 B per token on the last stage.
        assert (first.kv_bytes_per_token, last.kv_bytes_per_token) == (1024, 3072)
        assert first.kv_blocks == last.kv_blocks == 256 * 1024**2 // (3072 * 128)

    def test_used_and_headroom(self) -> None:
        """What is left is the total less weights, cache and process, at their largest."""
        rank = plan(tiny()).ranks[0]
        assert rank.weights_bytes is not None
        assert rank.activation_bytes is not None
        used = rank.weights_bytes + rank.activation_bytes[1] + 256 * 1024**2
        assert (rank.used_bytes, rank.headroom_bytes) == (used, 4 * GIB - used)


class TestGpu:
    """On a GPU the cache is what gpu_memory_utilization leaves, known within a range."""

    def test_requested_memory(self) -> None:
        """A GPU is filled to the fraction of what CUDA shows; headroom counts from NVML's total."""
        rank = plan(made()).ranks[0]
        requested = math.ceil(round(79.18 * GIB) * 0.85)
        assert rank.used_bytes == requested
        assert rank.headroom_bytes == 81_559 * 1024**2 - requested

    def test_range_of_blocks(self) -> None:
        """The more the activations take, the fewer blocks are left; both ends are kept."""
        found = plan(made())
        rank, cache = found.ranks[0], found.kv_cache
        assert cache is not None
        assert rank.activation_bytes is not None
        block = 40_960 * 16
        left = (rank.used_bytes or 0) - (rank.weights_bytes or 0)
        low, high = (int(left - taken) // block for taken in reversed(rank.activation_bytes))
        assert cache.blocks_range == (low, high)
        assert low < high

    def test_fewer_sequences_free_memory(self) -> None:
        """Sampling for fewer sequences takes less, so the KV cache is larger."""

        def tokens(sequences: int) -> int:
            cache = plan(made(serve={"max_num_seqs": sequences})).kv_cache
            return cache.tokens if cache else 0

        assert tokens(128) > tokens(1024)
