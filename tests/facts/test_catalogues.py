"""Every entry of the catalogues loads, is plausible, and says where its figures are from."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_llmdeploy.facts
from pytest_llmdeploy.facts import gpus, model_configs, vllm_flags

FOLDER = Path(pytest_llmdeploy.facts.__file__).parent
KINDS = {"boolean", "switch", "value", "list", "repeated"}


def raw(name: str) -> Any:
    """A data file as it is written."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def cited() -> Iterator[tuple[str, str, str]]:
    """Every (file, entry, source) of the catalogues."""
    for name, entries in (("gpus.json", "gpus"), ("models.json", "models")):
        for entry, facts in raw(name)[entries].items():
            texts = [text for key, text in facts.items() if key.endswith("source")]
            assert texts, f"{entry} has no source"
            for text in texts:
                for source in text.split(","):
                    yield name, entry, re.sub(r"\(.*\)", "", source).strip()


def test_every_figure_cites_a_source_that_is_listed() -> None:
    """A figure without a source can't be checked by a reader."""
    missing = [where for where in cited() if where[2] not in raw(where[0])["sources"]]
    assert missing == []


@pytest.mark.parametrize("name", raw("gpus.json")["gpus"])
def test_gpu_cites_memory_and_speed(name: str) -> None:
    """Both groups of figures have their own source."""
    assert {"memory_source", "speed_source"} <= raw("gpus.json")["gpus"][name].keys()


@pytest.mark.parametrize("name", gpus())
def test_gpu_is_plausible(name: str) -> None:
    """The units are right: memory near what the name says, CUDA sees a little less than NVML."""
    gpu = gpus()[name]
    said = re.search(r"(\d+)GB$", name)
    assert said
    assert gpu.memory_bytes == pytest.approx(int(said[1]) * 1e9, rel=0.12)
    assert 0.98 * gpu.memory_bytes < gpu.visible_bytes < gpu.memory_bytes
    assert gpu.link in {"nvlink", "pcie"}
    assert 5e11 < gpu.hbm_bytes_per_s < 1e13
    assert 1e14 < gpu.bf16_flops < 1e16
    assert gpu.fp8_flops is None or gpu.fp8_flops >= 2 * gpu.bf16_flops
    assert 1e10 < gpu.link_bytes_per_s < 2e12


@pytest.mark.parametrize("name", [*model_configs()])
def test_model_has_the_keys_that_a_plan_needs(name: str) -> None:
    """The shape is complete, its heads divide, and nothing is left to a default by mistake."""
    config = model_configs()[name]
    decoder = config.get("text_config", config)
    assert {"model_type", "torch_dtype"} <= config.keys()
    assert {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    } <= decoder.keys()
    assert decoder["num_attention_heads"] % decoder["num_key_value_heads"] == 0
    assert ("vision_config" in config) == ("text_config" in config)


def test_models_are_many_and_of_every_kind() -> None:
    """What people deploy is found without a config.json."""
    kinds = {config["model_type"] for config in model_configs().values()}
    assert len(model_configs()) >= 50
    assert kinds >= {"llama", "mistral3", "qwen2_moe", "gemma3", "gpt_oss", "llama4", "deepseek_v3"}


def test_a_model_like_another_has_its_shape() -> None:
    """A variant is written as what differs."""
    models = raw("models.json")["models"]
    for name, facts in models.items():
        if "like" in facts:
            assert "like" not in models[facts["like"]]
            assert model_configs()[name].items() >= facts.items()
            assert model_configs()[name].keys() >= models[facts["like"]].keys()


def test_every_flag_loads_with_a_known_kind() -> None:
    """Names are snake_case, kinds are those that the launch command knows."""
    odd = [
        flag.name
        for flag in vllm_flags().values()
        if flag.kind not in KINDS or not re.fullmatch(r"[a-z][a-z0-9_]*", flag.name)
    ]
    assert odd == []


def test_no_alias_means_two_flags() -> None:
    """An alias in extra_args is found to be the flag that it is."""
    aliases = [alias for flag in vllm_flags().values() for alias in flag.aliases]
    assert sorted(aliases) == sorted(set(aliases))
    assert all(alias.startswith("-") for alias in aliases)
    assert "-tp" in vllm_flags()["tensor_parallel_size"].aliases
