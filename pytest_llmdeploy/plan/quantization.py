"""How quantized weights are stored, and which linear modules are quantized."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

Compute = Literal["bf16", "fp8", "fp4"]

_LAYER = re.compile(r"\blayers\.(\d{1,6})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the quantized tensors are stored; `method` is vLLM's name for it, `compute` the units
    that multiply them (8-bit integers run as fast as fp8).

    A scale of `scale_bytes` is for `group` columns of a row (0: all of them), for a `block` of
    rows × columns, or where both are None for the whole tensor; so is a zero of `zero_bits`.
    Rows and columns are padded to a `multiple`; `tiled` scales to 128 rows × 4 groups.
    """

    method: str
    bits: float
    group: int | None = None
    block: tuple[int, int] | None = None
    compute: Compute = "bf16"
    scale_bytes: int = 4
    zero_bits: int = 0
    multiple: int = 1
    tiled: bool = False

    def stored_bytes(self, rows: int, columns: int, copies: int) -> int:
        """Weights, scales and zeros of one rank's shard."""
        rows, columns = _up(rows, self.multiple), _up(columns, self.multiple)
        scales = self._scales(rows, columns)
        bits = rows * columns * self.bits + scales * (8 * self.scale_bytes + self.zero_bits)
        return copies * -(-int(bits) // 8)

    def _scales(self, rows: int, columns: int) -> int:
        if self.block is not None:
            return -(-rows // self.block[0]) * -(-columns // self.block[1])
        if self.group is None:
            return 1
        groups = -(-columns // self.group) if self.group else 1
        return _up(rows, 128) * _up(groups, 4) if self.tiled else rows * groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of modules, as checkpoints list them: whole, parts, wildcards or regular
    expressions.
    """

    whole: frozenset[str] = frozenset()
    parts: tuple[str, ...] = ()
    wild: tuple[str, ...] = ()
    expressions: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, name: str) -> bool:
        return (
            name in self.whole
            or any(part in name for part in self.parts)
            or any(fnmatchcase(name, pattern) for pattern in self.wild)
            or any(pattern.match(name) for pattern in self.expressions)
        )

    @property
    def numbered(self) -> bool:
        """Whether the names may tell one layer from another."""
        expressions = (pattern.pattern for pattern in self.expressions)
        every = (*self.whole, *self.parts, *self.wild, *expressions)
        return any(character.isdigit() for name in every for character in name)

    def by_layer(self) -> tuple[Names, Mapping[int, Names]]:
        """The names of no layer in particular, and those of each layer."""
        own: dict[int, Names] = {}
        rest = replace(self, whole=frozenset(), parts=())
        for name, whole in (*((n, True) for n in self.whole), *((n, False) for n in self.parts)):
            number = _LAYER.search(name)
            if number is None:
                rest = rest.plus(name, whole=whole)
            else:
                index = int(number[1])
                own[index] = own.get(index, Names()).plus(name, whole=whole)
        return rest, own

    def plus(self, name: str, *, whole: bool) -> Names:
        if whole:
            return replace(self, whole=self.whole | {name})
        return replace(self, parts=(*self.parts, name))

    @property
    def signature(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names without the number of the layer."""
        return (
            frozenset(_LAYER.sub("layers.", name) for name in self.whole),
            frozenset(_LAYER.sub("layers.", name) for name in self.parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """A quantization, and which linear modules it is for; `targets` None: all but `ignored`."""

    quantization: Quantization
    ignored: Names = field(default_factory=Names)
    targets: Names | None = None
    head: bool = False

    def by_layer(self, layers: int) -> Iterator[tuple[Hashable, Packing]]:
        """The packing of every layer, and what it has in common with that of equal ones."""
        rest, own = self.ignored.by_layer()
        numbered = rest.numbered or (self.targets is not None and self.targets.numbered)
        general = replace(self, ignored=rest)
        for index in range(layers):
            names = own.get(index)
            if names is None:
                yield (index if numbered else None), general
                continue
            both = replace(rest, whole=rest.whole | names.whole, parts=rest.parts + names.parts)
            key = (names.signature, index if numbered else None)
            yield key, replace(self, ignored=both)

    def packs(self, module: str) -> bool:
        """Whether the module of that full name is packed ("model.layers.0.mlp.up_proj")."""
        names = _aliases(module)
        if any(name in self.ignored for name in names):
            return False
        return self.targets is None or any(name in self.targets for name in names)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _aliases(module: str) -> Sequence[str]:
    """The names that one module has: experts are one module for vLLM, and so are q, k and v."""
    names = [module]
    before, _, name = module.rpartition(".")
    if ".experts" in module:
        names = [module.replace(".*.", ".0."), module.partition(".experts")[0] + ".experts"]
    elif name in {"q_proj", "k_proj", "v_proj"}:
        names.append(f"{before}.qkv_proj")
    elif name in {"gate_proj", "up_proj"}:
        names.append(f"{before}.gate_up_proj")
    if module.startswith("language_model.model."):
        inner = module.removeprefix("language_model.model.")
        names += [name.replace(module, f"model.language_model.{inner}") for name in names[:1]]
    elif module.startswith(("vision_", "multi_modal_projector.")):
        names.append(f"model.{module}")
    return names
