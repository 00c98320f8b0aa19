"""Blocks that many families share: linear modules, norms, attention, gated MLPs, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_llmdeploy.plan.families.config import Config
from pytest_llmdeploy.plan.tensors import Attention, Split, Tensor

Tensors = Iterator[Tensor]


@dataclass(frozen=True, slots=True)
class Modules:
    """Makes the tensors of a layer's linear modules; `packed` says of a module, by its name in
    the layer, whether the quantization method packs it.
    """

    packed: Callable[[str], bool]

    def linear(
        self,
        name: str,
        rows: int,
        columns: int,
        split: Split = "no",
        *,
        bias: bool = False,
        groups: int = 0,
        experts: int = 0,
    ) -> Tensors:
        """The weight, and the bias, which is split as the rows are."""
        packed = self.packed(name)
        yield Tensor(f"{name}.weight", rows, columns, split, groups, experts, packed)
        if bias:
            whole: Split = "rows" if split == "rows" else "no"
            yield Tensor(f"{name}.bias", rows, 1, whole, groups, experts)


def norm(name: str, size: int) -> Tensor:
    """An RMS norm: one factor for each feature, on every rank."""
    return Tensor(f"{name}.weight", size)


def layer_norm(name: str, size: int) -> Tensors:
    """A norm with a factor and an offset."""
    yield Tensor(f"{name}.weight", size)
    yield Tensor(f"{name}.bias", size)


def norms(hidden: int, *names: str) -> Tensors:
    return (norm(name, hidden) for name in names)


def grouped_attention(config: Config, window: int = 0, kind: str = "") -> Attention:
    """Multi-head or grouped-query attention; with a window it is sliding, unless said otherwise."""
    heads = config.count("num_attention_heads")
    head_size = config.count("head_dim", config.count("hidden_size") // heads)
    found: Literal["full", "sliding", "chunked"] = "sliding" if window else "full"
    return Attention(
        kind="chunked" if kind == "chunked" else found,
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        head_size=head_size,
        value_size=head_size,
        window=window,
    )


def projections(
    modules: Modules,
    attention: Attention,
    hidden: int,
    *,
    bias: bool = False,
    output_bias: bool = False,
    fused: str = "",
) -> Tensors:
    """q, k, v and o; `fused` is the name of one weight that holds q, k and v."""
    q, kv, groups = attention.heads * attention.head_size, attention.kv_heads, attention.kv_heads
    names = [f"self_attn.{fused or part}" for part in ("q_proj", "k_proj", "v_proj")]
    yield from modules.linear(names[0], q, hidden, "rows", bias=bias)
    for name, size in zip(names[1:], (attention.head_size, attention.value_size), strict=True):
        yield from modules.linear(name, kv * size, hidden, "rows", bias=bias, groups=groups)
    yield from modules.linear("self_attn.o_proj", hidden, q, "columns", bias=output_bias)


def gated_mlp(
    modules: Modules,
    hidden: int,
    width: int,
    *,
    path: str = "mlp",
    bias: bool = False,
    names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    experts: int = 0,
) -> Tensors:
    """Gate, up and down; stacked where there are `experts` of them."""
    for name in names[:2]:
        module = f"{path}.{name}"
        yield from modules.linear(module, width, hidden, "rows", bias=bias, experts=experts)
    module = f"{path}.{names[2]}"
    yield from modules.linear(module, hidden, width, "columns", bias=bias, experts=experts)


def types_of(config: Config, layers: int) -> Sequence[str] | None:
    """The layer_types of a config; None where it has none."""
    types = config.items("layer_types")
    if types and (len(types) < layers or not all(isinstance(kind, str) for kind in types)):
        raise config.senseless("layer_types")
    return types[:layers] or None


def window_of(config: Config) -> int:
    """The window of a config; 0 where there is none, for vLLM takes 0 as none."""
    return config.count("sliding_window", 0, least=0)


def qk_norms(head_size: int) -> Tensors:
    return norms(head_size, "self_attn.q_norm", "self_attn.k_norm")


def router(hidden: int, experts: int, name: str = "mlp.gate", *, bias: bool = False) -> Tensors:
    """What chooses the experts of a token: never packed, never split."""
    return Modules(lambda _: False).linear(name, experts, hidden, bias=bias)
