"""What of a model's shape must divide: looked up once for each shape, as a search asks often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pytest_llmdeploy.plan.shape import Attention, ModelShape
from pytest_llmdeploy.plan.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Width:
    """So many features, and the first tensor that is split along them."""

    size: int
    name: str
    side: str

    def __str__(self) -> str:
        return f"the {self.size:,} {self.side} features of {self.name}"


@dataclass(frozen=True, slots=True)
class Widths:
    """Each size once: of weights that TP splits, of routed experts, and of the quantized ones.

    `single` are quantized weights whose output features are split and that share their matrix
    with no other. Attention's own widths follow from its heads.
    """

    attentions: tuple[Attention, ...]
    plain: tuple[Width, ...]
    towers: tuple[Width, ...]
    expert: tuple[Width, ...]
    quantized_inputs: tuple[Width, ...]
    quantized_experts: tuple[Width, ...]
    single: tuple[Width, ...]
    sliding: int
    layers: int
    is_latent: bool


class _Same:
    """A key for one object: to compare shapes takes as long as the model is deep."""

    __slots__ = ("shape",)

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def __hash__(self) -> int:
        return id(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.shape is self.shape


def widths(shape: ModelShape) -> Widths:
    return _widths(_Same(shape))


@lru_cache(maxsize=8)
def _widths(key: _Same) -> Widths:
    shape = key.shape
    kinds = list({id(layer): layer for layer in shape.layers}.values())
    tensors = [tensor for layer in kinds for tensor in layer.tensors]
    shared = [tensor for tensor in tensors if not tensor.experts]
    experts = [tensor for tensor in tensors if tensor.experts]
    latent = [
        tensor
        for layer in kinds
        if layer.attention.kind == "mla"
        for tensor in layer.tensors
        if _is_attention(tensor) and tensor.split == "rows"
    ]
    ends = (*shape.embedding, *shape.head)
    return Widths(
        attentions=tuple(dict.fromkeys(layer.attention for layer in kinds)),
        plain=_each(tensor for tensor in (*shared, *ends) if not _is_attention(tensor)),
        towers=_each(shape.towers),
        expert=_each(experts),
        quantized_inputs=_each(t for t in shared if t.quantized and t.split == "columns"),
        quantized_experts=_each(tensor for tensor in experts if tensor.quantized),
        single=_each(tensor for tensor in latent if tensor.quantized),
        sliding=sum(layer.attention.kind == "sliding" for layer in shape.layers),
        layers=len(shape.layers),
        is_latent=any(layer.attention.kind == "mla" for layer in kinds),
    )


def _is_attention(tensor: Tensor) -> bool:
    return tensor.name.startswith("self_attn.") or bool(tensor.groups)


def _each(tensors: Iterable[Tensor]) -> tuple[Width, ...]:
    found: dict[int, Width] = {}
    for tensor in tensors:
        if tensor.split in {"rows", "columns"}:
            size = tensor.rows if tensor.split == "rows" else tensor.columns
            side = "output" if tensor.split == "rows" else "input"
            module = tensor.name.rpartition(".")[0] or tensor.name
            found.setdefault(size, Width(size, module, side))
    return tuple(found.values())
