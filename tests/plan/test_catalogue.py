"""Every model of the catalogue, weight by weight as transformers builds it, and as published."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.plan.shape import ModelShape, shape_from_config
from pytest_llmdeploy.plan.tensors import Tensor

# The counts that Hugging Face shows for the published weights; of DeepSeek without its MTP layer.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "meta-llama/Meta-Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": 401_583_781_376,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": 24_011_361_280,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2-72B": 72_706_203_648,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-27b-it": 27_432_406_640,
    "microsoft/phi-4": 14_659_507_200,
    "openai/gpt-oss-120b": 116_829_156_672,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,
}

# What transformers calls otherwise than the checkpoints do.
RENAMED = (
    (r"\.experts\.\*\.(gate_proj|up_proj|w1|w3)\.weight$", ".experts.gate_up_proj"),
    (r"\.experts\.\*\.(down_proj|w2)\.weight$", ".experts.down_proj"),
    (r"block_sparse_moe\.", "mlp."),
    (r"^model\.(language_model|vision_model|vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.(model\.)?", "model."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)


# What no weight depends on, or transformers checks for what the catalogue leaves out.
IGNORED = {
    "source",
    "like",
    "quantization_config",
    "torch_dtype",
    "max_position_embeddings",
    "rope_scaling",
}


def distinct() -> Iterator[str]:
    """The models that differ in their shape, not only in how they are quantized."""
    seen = []
    for name, config in model_configs().items():
        shape = {key: config[key] for key in config if key not in IGNORED}
        if shape not in seen:
            seen.append(shape)
            yield name


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def counted(tensors: tuple[Tensor, ...]) -> Counter[str]:
    """Parameters by name; parts of one weight are added up."""
    found: Counter[str] = Counter()
    for tensor in tensors:
        if not tensor.made:
            found[renamed(tensor.name)] += tensor.parameters
    return found


def shortest(shape: ModelShape) -> int:
    """The least number of layers among which is one of every kind."""
    return 1 + max(shape.layers.index(layer) for layer in set(shape.layers))


def built(config: Mapping[str, Any], layers: int) -> Counter[str]:
    """Parameters by name of the model that transformers makes of it, cut off after `layers`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = {key: config[key] for key in config if key not in IGNORED | {"model_type"}}
    if "text_config" in raw:
        raw["text_config"] = {**raw["text_config"], "num_hidden_layers": layers}
        raw["text_config"].pop("rope_scaling", None)
        # vLLM ties what the decoder ties, whatever the model around it says.
        raw |= {key: x for key, x in config["text_config"].items() if key == "tie_word_embeddings"}
    else:
        raw["num_hidden_layers"] = layers
    kind = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    made = transformers.AutoConfig.for_model(kind, **raw)
    auto = "AutoModelForImageTextToText" if "text_config" in raw else "AutoModelForCausalLM"
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(made)
    weights = dict(model.named_parameters())
    # A bias that no gradient changes; checkpoints have it among their weights.
    weights |= {name: x for name, x in model.named_buffers() if "e_score_correction" in name}
    return Counter({renamed(name): weight.numel() for name, weight in weights.items()})


@pytest.mark.parametrize("name", [*distinct()])
def test_weights_are_those_of_transformers(name: str) -> None:
    """Each weight by its name, in a layer of every kind and outside the layers."""
    config = dict(model_configs()[name])
    shape = shape_from_config(config)
    layers = shortest(shape)
    outside = counted(shape.embedding + shape.head + shape.towers)
    for index, layer in enumerate(shape.layers[:layers]):
        for weight, count in counted(layer.tensors).items():
            outside[f"model.layers.{index}.{weight}"] += count
    assert outside == built(config, layers)


@pytest.mark.parametrize(("name", "parameters"), [*PUBLISHED.items()])
def test_published_parameters(name: str, parameters: int) -> None:
    """The whole count, to the last parameter."""
    assert shape_from_config(model_configs()[name]).parameters == parameters


@pytest.mark.parametrize("name", [*model_configs()])
def test_equal_layers_are_one_object(name: str) -> None:
    """Callers tell kinds of layers apart by identity."""
    layers = shape_from_config(model_configs()[name]).layers
    assert len({id(layer) for layer in layers}) == len(set(layers))
