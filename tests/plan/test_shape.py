"""Shapes from config.json: attention as vLLM treats it, positions, defaults, and every error."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.plan.families import FAMILIES, MULTIMODAL
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_from_config, shape_of
from pytest_llmdeploy.plan.tensors import Sharding, Tensor
from tests.plan.deployments import with_config

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def shape(model_type: str = "llama", **changes: Any) -> ModelShape:
    return shape_from_config({**BASE, "model_type": model_type, **changes})


def kinds(found: ModelShape) -> list[tuple[str, int]]:
    return [(layer.attention.kind, layer.attention.window) for layer in found.layers]


FULL, SLIDING = ("full", 0), ("sliding", 32)
MIXED = ["sliding_attention", "full_attention"] * 2


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {}, [FULL] * 4),
        ("mistral", {"sliding_window": None}, [FULL] * 4),
        # 0 is none, and the default of transformers is a window.
        ("mistral", {"sliding_window": 0}, [FULL] * 4),
        ("mistral", {}, [("sliding", 4096)] * 4),
        ("mistral", {"sliding_window": 32}, [SLIDING] * 4),
        ("mistral", {"sliding_window": 32, "layer_types": MIXED}, [SLIDING, FULL] * 2),
        ("phi3", {"sliding_window": 32}, [SLIDING] * 4),
        # A window that nobody asked to use.
        ("qwen2", {"sliding_window": 32}, [FULL] * 4),
        (
            "qwen2",
            {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0},
            [SLIDING] * 4,
        ),
        (
            "qwen3",
            {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 4},
            [FULL] * 4,
        ),
        ("gemma2", {"sliding_window": 32}, [SLIDING, FULL] * 2),
        (
            "gemma3_text",
            {"sliding_window": 32, "sliding_window_pattern": 4},
            [SLIDING, SLIDING, SLIDING, FULL],
        ),
        ("gpt_oss", {"sliding_window": 32}, [SLIDING, FULL] * 2),
        ("llama4_text", {"attention_chunk_size": 32}, [("chunked", 32)] * 3 + [FULL]),
        ("llama4_text", {"attention_chunk_size": None}, [FULL] * 4),
    ],
)
def test_windows(model_type: str, changes: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    """Which layers forget, is what vLLM's model makes of the keys, not what they seem to say."""
    assert kinds(shape(model_type, **changes)) == expected


def test_latent_attention() -> None:
    """MLA caches one latent and no values, and is split by heads behind it."""
    found = shape_from_config(model_configs()["deepseek-ai/DeepSeek-V3"])
    assert (found.kv_heads, found.head_size, found.heads) == (1, 576, 128)
    assert {layer.attention.value_size for layer in found.layers} == {0}
    assert Counter(layer.experts for layer in found.layers) == {0: 3, 256: 58}


@pytest.mark.parametrize(
    ("name", "dense", "experts", "chosen"),
    [
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 24, 128, 1),
        ("openai/gpt-oss-120b", 0, 128, 4),
        ("mistralai/Mixtral-8x7B-v0.1", 0, 8, 2),
        ("Qwen/Qwen1.5-MoE-A2.7B-Chat", 0, 60, 4),
        ("Qwen/Qwen3-8B", 36, 0, 0),
    ],
)
def test_experts(name: str, dense: int, experts: int, chosen: int) -> None:
    """How many layers are dense, and what the others have."""
    found = shape_from_config(model_configs()[name])
    assert sum(not layer.experts for layer in found.layers) == dense
    assert found.experts == experts
    assert max(layer.experts_per_token for layer in found.layers) == chosen


def test_mlp_only_layers_have_no_experts() -> None:
    """Of the layers that a step would give experts, those that are listed have none."""
    found = shape("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[3])
    assert [layer.experts for layer in found.layers] == [0, 128, 0, 0]


@pytest.mark.parametrize(
    ("changes", "positions", "default"),
    [
        ({}, 512, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048, 2048),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 1024, 1024),
        # Already scaled in max_position_embeddings.
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 512, 512),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 512, 512),
        ({"max_seq_len": 100}, 100, 100),
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64},
            512,
            64,
        ),
    ],
)
def test_positions(changes: dict[str, Any], positions: int, default: int) -> None:
    """The most tokens that vLLM derives, and what it serves unless asked for more."""
    found = shape(**changes)
    assert (found.positions, found.default_length) == (positions, default)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"num_hidden_layers": 0}, "config.json: num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers is 1000000000"),
        ({"vocab_size": "many"}, "config.json: vocab_size is 'many'"),
        ({"vocab_size": True}, "config.json: vocab_size is True"),
        ({"rope_scaling": [1]}, r"config.json: rope_scaling is \[1\]"),
        ({"torch_dtype": "int3"}, "dtype 'int3' is not known"),
        ({"layer_types": ["full_attention"]}, "config.json: layer_types is"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    """What is missing or can't be meant, is said by its name."""
    with pytest.raises(ShapeUnknownError, match=message):
        shape(**changes)


def test_error_of_an_unknown_model_type() -> None:
    """The nearest one comes first, then all, then what to do."""
    with pytest.raises(ShapeUnknownError) as error:
        shape("qwen33")
    text = str(error.value)
    assert text.startswith("model_type 'qwen33' is not known: did you mean 'qwen3'?")
    assert all(known in text for known in (*FAMILIES, *MULTIMODAL))
    assert text.endswith(
        "state the shape in the words of one of them: model.config: {model_type: …}"
    )


def test_nested_keys_are_named_with_their_section() -> None:
    """In a multimodal model it matters whose key it is."""
    config = {"model_type": "gemma3", "text_config": {"hidden_size": -1}}
    with pytest.raises(ShapeUnknownError, match=r"text_config\.hidden_size is -1"):
        shape_from_config(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    sorted(
        {key for family in FAMILIES.values() for key in family.defaults}
        | {*BASE, "quantization_config", "text_config", "vision_config", "layer_types"}
        | {"rope_scaling", "rope_parameters", "no_rope_layers", "mlp_only_layers", "torch_dtype"}
    )
)


@given(st.sampled_from([*FAMILIES, *MULTIMODAL, "other"]), st.dictionaries(KEYS, JSON, max_size=4))
@example("llama", {"quantization_config": {"quant_method": "gptq", "dynamic": {"-:(": {}}}})
@example("gemma3", {"vision_config": {"patch_size": 0}})
@example("mistral3", {"vision_feature_layer": [[]]})
def test_any_config_gives_a_shape_or_an_error(model_type: str, changes: dict[str, Any]) -> None:
    """No mapping, however odd, ends in a traceback."""
    config = {**BASE, "model_type": model_type, **changes}
    with contextlib.suppress(ShapeUnknownError):
        found = shape_from_config(config)
        assert found.parameters > 0
        assert len(found.layers) > 0


@given(st.dictionaries(st.text(max_size=12) | KEYS, JSON, max_size=6))
def test_any_mapping_gives_a_shape_or_an_error(config: dict[str, Any]) -> None:
    """Also one that has nothing to do with models."""
    with contextlib.suppress(ShapeUnknownError):
        assert shape_from_config(config).layers


@given(
    st.builds(
        Tensor,
        st.just("weight"),
        rows=st.integers(1, 64).map(lambda n: n * 64),
        columns=st.integers(1, 64).map(lambda n: n * 64),
        split=st.sampled_from(["no", "rows", "columns", "vocabulary"]),
        experts=st.sampled_from([0, 16]),
    ),
    st.sampled_from([1, 2, 4, 8]),
)
def test_shards_add_up(tensor: Tensor, ways: int) -> None:
    """As many shards as there are ranks are the whole weight, or as many copies of it."""
    rows, columns, copies = tensor.shard(Sharding(tensor=ways, expert_tensor=ways, experts=None))
    whole = tensor.parameters * (ways if tensor.split == "no" else 1)
    assert rows * columns * copies * ways == whole


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    """A key that is absent means what the config class of that model type says."""
    transformers = pytest.importorskip("transformers")
    kind = {"kimi_k2": "deepseek_v3"}.get(model_type, model_type)
    reference = transformers.AutoConfig.for_model(kind)
    # Set or read by vLLM's model code, or derived by the class from others.
    own = {"sliding_window", "moe_layer_freq", "topk_method", "rope_scaling"}
    own |= {"sliding_window_pattern"}
    for key, value in FAMILIES[model_type].defaults.items():
        if key not in own:
            assert getattr(reference, key) == value, key


def test_modelopt_writes_beside_the_config(tmp_path: Path) -> None:
    """What a checkpoint of modelopt is quantized with may be in a file of its own."""
    declared = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(declared))
    found = shape_of(with_config(tmp_path / "config.json", BASE))
    assert found.quantization is not None
    assert found.quantization.method == "modelopt"


def test_a_large_model_is_quick() -> None:
    """Eighty equal layers are made once; the search asks for shapes by the hundred."""
    config = model_configs()["meta-llama/Meta-Llama-3-70B-Instruct"]
    times = []
    for _ in range(20):
        began = time.perf_counter()
        shape_from_config(config)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.001
