"""Weights and KV cache per rank: exact, against published figures and against the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.plan import ModelShape, plan
from pytest_llmdeploy.plan.shape import shape_from_config
from pytest_llmdeploy.plan.tensors import Sharding, Tensor
from pytest_llmdeploy.spec import Spec
from tests.plan.deployments import CONFIG, made, tiny, with_config

GIB = 1024**3

# Dense decoders; every size can be divided by 2, 4 and 8.
CONFIGS = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "qwen2", "qwen3"]),
        "hidden_size": st.sampled_from([64, 256, 1536]),
        "intermediate_size": st.sampled_from([128, 704]),
        "num_hidden_layers": st.integers(1, 5),
        "num_attention_heads": st.sampled_from([16, 32]),
        "num_key_value_heads": st.sampled_from([8, 16]),
        "head_dim": st.sampled_from([16, 96]),
        "vocab_size": st.integers(1, 2000),
        "max_position_embeddings": st.just(64),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
    }
)


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
    angles = 8192 * 128 * 2
    assert {round(((rank.weights_bytes or 0) - angles) / GIB, 3) for rank in ranks} == {gib}
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
    angles = 4096 * (256 // 16)
    assert found.ranks[0].weights_bytes == (found.parameters + angles) * width


class Measured(NamedTuple):
    """What vLLM 0.11 reported for one GPU of so many: GiB of weights.

    From docs/empirical-vllm-memory-results.md of llm-d-incubation/llm-d-planner (Apache-2.0);
    H100, max_model_len 16000.
    """

    model: str
    tp: int
    gib: float


MEASURED = (
    Measured("openai/gpt-oss-20b", 1, 13.47),
    Measured("openai/gpt-oss-120b", 1, 64.38),
    Measured("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 2, 33.88),
    Measured("meta-llama/Llama-3.1-8B-Instruct", 1, 14.99),
    Measured("Qwen/Qwen3-0.6B", 1, 1.12),
    Measured("Qwen/Qwen3-32B", 1, 61.03),
    Measured("Qwen/Qwen3-32B", 2, 30.59),
    Measured("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 1, 44.76),
)


def weights(shape: ModelShape) -> Iterator[Tensor]:
    """Every weight of a model on one stage; a tied embedding once."""
    yield from (*shape.embedding, *shape.head, *shape.towers, *shape.everywhere)
    for layer in shape.layers:
        yield from layer.tensors


def held(shape: ModelShape, sharding: Sharding, width: int = 2) -> int:
    """Bytes of all weights on one rank, by the rule that the plan has."""
    sizes = 0
    for tensor in weights(shape):
        rows, columns, copies = tensor.shard(sharding)
        if tensor.quantized and shape.quantization is not None:
            sizes += shape.quantization.stored_bytes(rows, columns, copies)
        else:
            sizes += rows * columns * copies * width
    return sizes


def kept_twice(shape: ModelShape) -> int:
    """The scales of mxfp4 experts as they were loaded: vLLM 0.32 frees them once it has rearranged
    them (fused_moe/oracle/mxfp4.py); its older Triton path freed only the weights beside them.
    """
    packed = [tensor for tensor in weights(shape) if tensor.quantized]
    return sum(tensor.parameters for tensor in packed) // 32 if "gpt" in shape.model_type else 0


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.model.split('/')[1]}-{row.tp}")
def test_weights_as_measured_on_h100(row: Measured) -> None:
    """Eight deployments of which someone wrote down what vLLM loaded, each within a half percent.

    The two of gpt-oss are no independent check: what `kept_twice` adds was found by comparing
    several explanations with them. Without it the sizes are 4 to 5 % below what 0.11 loaded.
    """
    shape = shape_from_config(model_configs()[row.model])
    sharding = Sharding(tensor=row.tp, expert_tensor=row.tp, experts=None)
    found = held(shape, sharding) + kept_twice(shape)
    assert found / GIB == pytest.approx(row.gib, rel=0.005)


@given(CONFIGS, st.sampled_from([1, 2, 4, 8]))
def test_all_ranks_together_hold_the_model(config: dict[str, Any], tp: int) -> None:
    """The weights of all ranks, less what each rank has a copy of, are the padded model."""
    shape = shape_from_config(config)
    sharding = Sharding(tensor=tp, expert_tensor=tp, experts=None)
    whole = held(shape, Sharding(tensor=1, expert_tensor=1, experts=None))
    copied = sum(
        tensor.rows * tensor.columns * 2 * (tp - 1)
        for tensor in weights(shape)
        if tensor.split == "no"
    )
    assert held(shape, sharding) * tp - copied == whole
    # The vocabulary is padded, and the table of angles is no parameter.
    more = shape.padded_vocab - shape.vocab
    more *= shape.hidden * (1 if shape.tied else 2)
    made = sum(tensor.rows * tensor.columns for tensor in weights(shape) if tensor.made)
    assert whole == 2 * (shape.parameters + more + made)


@given(CONFIGS, st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_kv_heads_are_split_then_replicated(config: dict[str, Any], tp: int) -> None:
    """No rank is without a KV head, and no more are held than splitting allows."""
    shape = shape_from_config(config)
    keys = next(t for t in shape.layers[0].tensors if t.name == "self_attn.k_proj.weight")
    rows, columns, _ = keys.shard(Sharding(tensor=tp, expert_tensor=tp, experts=None))
    assert rows == max(1, shape.kv_heads // tp) * shape.head_size
    assert columns == shape.hidden


@pytest.mark.parametrize(
    ("tp", "ways", "held_experts", "expected"),
    [
        # EP: whole experts, dealt out; the rest by TP.
        (2, 1, 16, (768, 2048, 16)),
        # Without EP every expert is split over all of DP × PCP × TP.
        (2, 8, None, (96, 2048, 128)),
    ],
)
def test_experts_are_dealt_out_or_split(
    tp: int, ways: int, held_experts: int | None, expected: tuple[int, int, int]
) -> None:
    """Qwen3-30B-A3B has 128 experts, 768 wide."""
    shape = shape_from_config(model_configs()["Qwen/Qwen3-30B-A3B"])
    gate = next(t for t in shape.layers[0].tensors if ".experts." in t.name)
    router = next(t for t in shape.layers[0].tensors if t.name == "mlp.gate.weight")
    sharding = Sharding(tensor=tp, expert_tensor=ways, experts=held_experts)
    assert gate.shard(sharding) == expected
    assert router.shard(sharding) == (128, 2048, 1)


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
