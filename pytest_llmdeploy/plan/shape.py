"""The shape of a model, from its published config.json: what weights and KV cache it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.spec import Spec, nearest

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# model_type: (bias on q, k and v; norms on q and k)
_LLAMA_FAMILY = {
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
}

_QUANTIZED = "quantized weights are not planned yet: they are not sized by dtype"


class ShapeUnknownError(Exception):
    """The model's shape can't be known from here; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of the llama family; counts of features, heads, layers and tokens."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    positions: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str

    @property
    def padded_vocab(self) -> int:
        """VLLM pads the vocabulary to a multiple of 64 (vocab_parallel_embedding.py)."""
        return -(-self.vocab // 64) * 64

    @property
    def parameters(self) -> int:
        """The published count: nothing sharded, nothing padded."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters(1) + embeddings + self.hidden

    def layer_parameters(self, tp: int) -> int:
        """Parameters of one layer on one of `tp` ranks; KV heads are replicated when tp exceeds
        them.
        """
        q = self.heads * self.head_size // tp
        kv = self.kv_heads_per_rank(tp) * self.head_size
        attention = self.hidden * (2 * q + 2 * kv)
        attention += (q + 2 * kv) * self.qkv_bias + self.hidden * self.output_bias
        attention += 2 * self.head_size * self.qk_norm
        mlp = 3 * self.hidden * self.intermediate // tp
        mlp += (2 * self.intermediate // tp + self.hidden) * self.mlp_bias
        return attention + mlp + 2 * self.hidden

    def kv_heads_per_rank(self, tp: int) -> int:
        return max(1, self.kv_heads // tp)


def shape_of(spec: Spec) -> ModelShape:
    """The shape of the spec's model.

    Raises:
        ShapeUnknownError: when no config.json is at hand, or it is of a kind not known here.
    """
    if spec.model.quantization is not None:
        raise ShapeUnknownError(_QUANTIZED)
    return shape_from_config(_config(spec))


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face config.json describes.

    Raises:
        ShapeUnknownError: for a model type that is not known, a key that is missing or senseless.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _LLAMA_FAMILY:
        known = ", ".join(_LLAMA_FAMILY)
        msg = f"model_type {model_type!r} is not known: {nearest(model_type, _LLAMA_FAMILY)}"
        raise ShapeUnknownError(msg if known in msg else f"{msg} (known are: {known})")
    if config.get("quantization_config"):
        raise ShapeUnknownError(_QUANTIZED)
    try:
        return _llama_family(model_type, config)
    except KeyError as error:
        msg = f"config.json has no {error.args[0]!r}"
        raise ShapeUnknownError(msg) from None
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        msg = f"config.json does not describe a model: {error}"
        raise ShapeUnknownError(msg) from None


def _llama_family(model_type: str, config: Mapping[str, Any]) -> ModelShape:
    qkv_bias, qk_norm = _LLAMA_FAMILY[model_type]
    bias = bool(config.get("attention_bias", False))
    heads = _count(config, "num_attention_heads")
    hidden = _count(config, "hidden_size")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in DTYPE_BYTES:
        msg = f"dtype {dtype!r} is not known: {nearest(dtype, DTYPE_BYTES)}"
        raise ShapeUnknownError(msg)
    return ModelShape(
        model_type=model_type,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        layers=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads),
        head_size=_count(config, "head_dim", hidden // heads),
        vocab=_count(config, "vocab_size"),
        positions=_positions(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias or bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=qk_norm,
        dtype=dtype,
    )


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name) or default or config[name]
    if not isinstance(value, int) or value < 1:
        msg = f"{name} is {value!r}"
        raise ValueError(msg)
    return value


def _positions(config: Mapping[str, Any]) -> int:
    """VLLM's derived maximum length (config/model.py: _get_and_verify_max_len)."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = float(scaling.get("factor") or 1) if kind in {"linear", "dynamic"} else 1.0
    positions = _count(config, "max_position_embeddings")
    if kind == "yarn":
        original = int(scaling.get("original_max_position_embeddings") or positions)
        return int(original * float(scaling.get("factor") or 1))
    return int(positions * factor)


def _config(spec: Spec) -> Mapping[str, Any]:
    if spec.model.config is not None:
        return _read(spec.resolve(spec.model.config), f"model.config {spec.model.config!r}")
    if spec.model_folder is not None:
        return _read(spec.model_folder, f"model.id {spec.model.id!r}")
    if spec.model.id in model_configs():
        return model_configs()[spec.model.id]
    if cached := _cached(spec):
        return _read(cached, f"the cached config of {spec.model.id!r}")
    msg = (
        f"the model {spec.model.id!r} is not in the catalogue: set model.config to its config.json"
    )
    raise ShapeUnknownError(f"{msg} ({nearest(spec.model.id, model_configs())})")


def _cached(spec: Spec) -> Path | None:
    """The newest config.json of the model in the local Hugging Face cache."""
    import os  # noqa: PLC0415 - only the cache needs the environment

    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    folder = Path(home) / "hub" / f"models--{spec.model.id.replace('/', '--')}" / "snapshots"
    found = folder.glob(f"{spec.model.revision or '*'}/config.json")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _read(path: Path, what: str) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{what} cannot be read: {error.strerror}"
        raise ShapeUnknownError(msg) from None
    except ValueError:
        msg = f"{what} is not JSON"
        raise ShapeUnknownError(msg) from None
    if not isinstance(config, dict):
        msg = f"{what} is not a mapping"
        raise ShapeUnknownError(msg)
    return config
