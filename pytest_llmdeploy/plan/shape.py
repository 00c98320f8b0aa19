"""The shape of a model, from its published config.json: what weights and KV cache it has."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from typing import Any

from pytest_llmdeploy.facts import model_configs
from pytest_llmdeploy.plan.checkpoint import packing_of
from pytest_llmdeploy.plan.families import FAMILIES, MULTIMODAL
from pytest_llmdeploy.plan.families.blocks import Modules
from pytest_llmdeploy.plan.families.config import Config, ShapeUnknownError
from pytest_llmdeploy.plan.families.family import Family, Kind
from pytest_llmdeploy.plan.families.rotary import default_length, positions_of, tables
from pytest_llmdeploy.plan.quantization import Packing, Quantization
from pytest_llmdeploy.plan.tensors import Attention, Layer, Tensor, padded
from pytest_llmdeploy.spec import Spec, closest, nearest
from pytest_llmdeploy.spec.bounded import read_bounded

__all__ = [
    "DTYPE_BYTES",
    "Attention",
    "Layer",
    "ModelShape",
    "ShapeUnknownError",
    "shape_from_config",
    "shape_of",
]

# A config.json has some kilobytes.
_MOST_BYTES = 16 * 1024**2
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as vLLM holds it; counts of features, heads and tokens. Equal layers are one object.

    `positions` are the most tokens that a sequence may have, `default_length` what vLLM serves
    unless asked. `embedding` is on the first stage, and on the last where it is tied to the head;
    `head` is on the last; `towers` (encoders and projectors of multimodal models) are on the
    first; `everywhere` is what each stage holds besides (tables of rotary angles).
    """

    model_type: str
    hidden: int
    vocab: int
    positions: int
    default_length: int
    tied: bool
    dtype: str
    heads: int
    kv_heads: int
    head_size: int
    layers: tuple[Layer, ...]
    embedding: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    towers: tuple[Tensor, ...] = ()
    everywhere: tuple[Tensor, ...] = ()
    quantization: Quantization | None = None

    @property
    def padded_vocab(self) -> int:
        """The vocabulary as vLLM pads it (vocab_parallel_embedding.py)."""
        return padded(self.vocab)

    @cached_property
    def parameters(self) -> int:
        """The published count: nothing sharded, nothing padded."""
        kinds = {id(layer): layer for layer in self.layers}
        counts = Counter(map(id, self.layers))
        layers = sum(count * _parameters(kinds[kind].tensors) for kind, count in counts.items())
        return layers + _parameters(self.embedding + self.head + self.towers)

    @cached_property
    def experts(self) -> int:
        """The routed experts of the layer that has the most; 0 in a dense model."""
        return max(layer.experts for layer in self.layers)


def _parameters(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.parameters for tensor in tensors)


def shape_of(spec: Spec) -> ModelShape:
    """The shape of the spec's model.

    Raises:
        ShapeUnknownError: when no config.json is at hand, or it is of a kind not known here.
    """
    return shape_from_config(_config(spec), spec.model.quantization)


def shape_from_config(config: Mapping[str, Any], quantization: str | None = None) -> ModelShape:
    """The shape that a Hugging Face config.json describes.

    `quantization` is the method with which vLLM is asked to load it.

    Raises:
        ShapeUnknownError: for a model type or quantization that is not known, and for a key that
            is missing or senseless.
    """
    model_type, packing = str(config.get("model_type")), packing_of(config, quantization)
    if model_type in FAMILIES:
        family = FAMILIES[model_type]
        return _decoder(model_type, family, Config(config, family.defaults), packing)
    if model_type in MULTIMODAL:
        return _multimodal(model_type, config, packing)
    raise ShapeUnknownError(_unknown(model_type))


def _unknown(model_type: str) -> str:
    known = [*FAMILIES, *MULTIMODAL]
    every, hint = ", ".join(sorted(known)), nearest(model_type, known, len(known))
    msg = f"model_type {model_type!r} is not known: {hint}"
    msg += "" if every in msg else f" (known are: {every})"
    return f"{msg}; state the shape in the words of one of them: model.config: {{model_type: …}}"


def _multimodal(model_type: str, raw: Mapping[str, Any], packing: Packing | None) -> ModelShape:
    """A decoder with towers; the decoder's config says the rest."""
    kind = MULTIMODAL[model_type]
    config = Config(raw, kind.defaults)
    text_type = str(config.section("text_config").get("model_type") or kind.text)
    if text_type not in FAMILIES:
        raise ShapeUnknownError(f"text_config: {_unknown(text_type)}")
    family = FAMILIES[text_type]
    text = config.section("text_config", family.defaults)
    shape = _decoder(text_type, family, text, packing, "language_model.model.layers.")
    modules = Modules(packing.packs if packing else _never)
    towers = tuple(kind.towers(config, text, modules))
    dtype = _dtype(config, text, config.section("vision_config"))
    return replace(shape, model_type=model_type, towers=towers, dtype=dtype)


def _decoder(
    model_type: str,
    family: Family,
    config: Config,
    packing: Packing | None,
    path: str = "model.layers.",
) -> ModelShape:
    hidden, vocab = config.count("hidden_size"), config.count("vocab_size")
    layers, tied = _layers(family, config, packing, path), config.flag("tie_word_embeddings")
    attention, positions = layers[0].attention, positions_of(config, model_type)
    norm, head = Tensor("model.norm.weight", hidden), packing is not None and packing.head
    lm_head = Tensor("lm_head.weight", vocab, hidden, "vocabulary", quantized=head)
    rotary = config.count("qk_rope_head_dim") if attention.kind == "mla" else attention.head_size
    angles = tables(config, rotary, wide=family.wide_angles, local=family.local_angles)
    return ModelShape(
        model_type=model_type,
        hidden=hidden,
        vocab=vocab,
        positions=positions,
        default_length=default_length(config, positions),
        tied=tied,
        dtype=_dtype(config),
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        layers=layers,
        embedding=(Tensor("model.embed_tokens.weight", vocab, hidden, "vocabulary"),),
        head=(norm,) if tied else (norm, lm_head),
        everywhere=tuple(angles),
        quantization=packing.quantization if packing else None,
    )


def _layers(
    family: Family, config: Config, packing: Packing | None, path: str
) -> tuple[Layer, ...]:
    """Every layer; equal ones are one object."""
    made: dict[tuple[Kind, Hashable], Layer] = {}
    kinds = family.kinds(config)
    packings = packing.by_layer(len(kinds)) if packing else repeat((None, None))
    layers = []
    for index, (kind, (key, own)) in enumerate(zip(kinds, packings, strict=False)):
        if (kind, key) not in made:
            modules = Modules(partial(_packs, own, f"{path}{index}.") if own else _never)
            made[kind, key] = family.layer(config, modules, kind)
        layers.append(made[kind, key])
    equal: dict[Layer, Layer] = {}
    one = {id(layer): equal.setdefault(layer, layer) for layer in made.values()}
    return tuple(one[id(layer)] for layer in layers)


def _packs(packing: Packing, path: str, module: str) -> bool:
    return packing.packs(path + module)


def _never(_name: str) -> bool:
    return False


def _dtype(*configs: Config) -> str:
    """The first that is declared; float32 where none is."""
    said = (config.get(key) for config in configs for key in ("dtype", "torch_dtype"))
    dtype = str(next(filter(None, said), "float32")).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise ShapeUnknownError(f"dtype {dtype!r} is not known: {nearest(dtype, DTYPE_BYTES)}")
    return dtype


def _config(spec: Spec) -> Mapping[str, Any]:
    if isinstance(spec.model.config, Mapping):
        return spec.model.config
    if spec.model.config is not None:
        return _read(spec.resolve(spec.model.config), f"model.config {spec.model.config!r}")
    if spec.model_folder is not None:
        return _read(spec.model_folder, f"model.id {spec.model.id!r}")
    if spec.model.id in model_configs():
        return model_configs()[spec.model.id]
    if cached := _cached(spec):
        return _read(cached, f"the cached config of {spec.model.id!r}")
    meant = closest(spec.model.id, model_configs())
    what = "set model.config to its config.json" + (f", or {meant}" if meant else "")
    raise ShapeUnknownError(f"the model {spec.model.id!r} is not in the catalogue: {what}")


def _cached(spec: Spec) -> Path | None:
    """The newest config.json of the model in the local Hugging Face cache."""
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    folder = Path(home) / "hub" / f"models--{spec.model.id.replace('/', '--')}" / "snapshots"
    if not os.path.isdir(folder):  # noqa: PTH112 - as below
        return None
    wanted = spec.model.revision
    found = (path for path in folder.glob("*/config.json") if wanted in {None, path.parent.name})
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _read(path: Path, what: str) -> Mapping[str, Any]:
    """A config.json; modelopt may write what it did into a file beside it."""
    # Unlike a Path it answers for any text, even one that can't be a name.
    file = path / "config.json" if os.path.isdir(path) else path  # noqa: PTH112
    config = _mapping(file, what)
    beside = file.with_name("hf_quant_config.json")
    if "quantization_config" not in config and beside.is_file():
        return {**config, "quantization_config": _mapping(beside, str(beside))}
    return config


def _mapping(file: Path, what: str) -> Mapping[str, Any]:
    try:
        config = json.loads(read_bounded(file, _MOST_BYTES))
    except OSError as error:
        msg = f"{what} cannot be read: {error.strerror}"
        raise ShapeUnknownError(msg) from None
    except (ValueError, RecursionError):
        msg = f"{what} is not JSON"
        raise ShapeUnknownError(msg) from None
    if not isinstance(config, dict):
        msg = f"{what} is not a mapping"
        raise ShapeUnknownError(msg)
    return config
