"""Rotary position embedding: how many positions a model has, and the table of angles for them."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.tensors import Tensor

# The keys that vLLM takes the least of (transformers_utils/model_arch_config_convertor.py).
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Scalings whose max_position_embeddings is already the scaled one (config/model.py).
_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}


def scaling_of(config: Config) -> Config:
    """The rope_parameters or rope_scaling; of full attention where kinds of layers differ."""
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    section = config.section(name)
    return section.section("full_attention") if section.get("full_attention") else section


def positions_of(config: Config, model_type: str) -> int:
    """VLLM's derived maximum length (config/model.py: _get_and_verify_max_len)."""
    config.count("max_position_embeddings")
    length = min(config.count(key) for key in _LENGTHS if config.get(key) is not None)
    scaling = scaling_of(config)
    if kind_of(scaling) in _ALREADY_SCALED or "gemma3" in model_type:
        return length
    return int(length * scaling.factor("factor"))


def default_length(config: Config, positions: int) -> int:
    """The max_model_len where none is asked for: LongRoPE serves the shorter one by default."""
    if kind_of(scaling_of(config)) not in {"longrope", "su"}:
        return positions
    return config.count("original_max_position_embeddings", positions)


def tables(config: Config, rotary: int, *, wide: bool, local: bool) -> Iterator[Tensor]:
    """Cosines and sines, on every stage; in 32 bits where they are `wide`. Layers with a window
    may have a `local` table, unscaled.
    """
    scaling, length = scaling_of(config), config.count("max_position_embeddings")
    size = int(rotary * _partial(config, scaling)) * (2 if wide else 1)
    yield Tensor("rotary_emb.cos_sin_cache", _rows(config, scaling, length), size, made=True)
    if local:
        yield Tensor("rotary_emb_local.cos_sin_cache", length, size, made=True)


def kind_of(scaling: Config) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _partial(config: Config, scaling: Config) -> float:
    return scaling.factor("partial_rotary_factor", config.factor("partial_rotary_factor"))


def _rows(config: Config, scaling: Config, length: int) -> int:
    """Positions in the table (layers/rotary_embedding)."""
    kind, factor = kind_of(scaling), scaling.factor("factor")
    original = scaling.count("original_max_position_embeddings", length)
    if kind in {"yarn", "deepseek_yarn"}:
        return int(original * factor)
    if kind in {"longrope", "su"}:
        return config.count("original_max_position_embeddings", original) + length
    return int(length * factor) if kind in {"linear", "dynamic"} else length
