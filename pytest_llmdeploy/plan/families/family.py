"""What a family of models has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_llmdeploy.plan.families.blocks import Modules, Tensors
from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.tensors import Attention, Layer

Kind = tuple[Attention, str]
"""What tells layers of one model apart: their attention, and a name for the rest ("moe")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Decoders of one model_type.

    `defaults` are those of the transformers config class, for keys that are absent. `kinds` has
    one entry per layer; equal kinds are equal layers. Rotary angles are kept in 32 bits where
    they are `wide`; layers with a window have a table of their own where it is `local`.
    """

    defaults: Mapping[str, Any]
    kinds: Callable[[Config], Sequence[Kind]]
    layer: Callable[[Config, Modules, Kind], Layer]
    wide_angles: bool = False
    local_angles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Multimodal:
    """Models of one model_type that are a decoder, whose config is under text_config and by
    default of type `text`, and `towers`: encoders and projectors.
    """

    text: str
    towers: Callable[[Config, Config, Modules], Tensors]
    defaults: Mapping[str, Any] = field(default_factory=dict)
