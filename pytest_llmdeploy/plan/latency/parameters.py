"""What kernels and engine reach: the parameters of the latency model, as facts/latency.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Product:
    """Matrix products: their latency, and the shares of the HBM's and the peak rate reached."""

    us: float
    read: float
    compute: float


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention: its latency, the HBM's share while decoding, the bf16 peak's in prefill."""

    us: float
    read: float
    compute: float


@dataclass(frozen=True, slots=True)
class Collective:
    """A sum over the group: its latency, and the share of the link's rate that long ones reach."""

    us: float
    rate: float


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the kernels reach on one GPU; products by precision, attention by that of the cache."""

    capability: int
    products: Mapping[str, Product]
    attention: Mapping[str, Attention]
    collective: Collective

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Kernels:
        return cls(
            raw["capability"],
            {name: Product(**product) for name, product in raw["products"].items()},
            {name: Attention(**attention) for name, attention in raw["attention"].items()},
            Collective(**raw["collective"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What vLLM adds to its kernels, in microseconds.

    A layer has so many `products`, and other kernels that take `layer_us`, of which `norms_us` go
    where its sums take the norms over. Ranks reach a sum `skew_us` apart. A step with a prompt has
    no CUDA graph and takes `mixed_us` longer. The host takes `host_us` for a step and `sequence_us`
    for each sequence in it. A stage hands over in `stage_us`. Between nodes, `network` and its rate
    take the link's place.
    """

    overlap: float
    products: int
    layer_us: float
    norms_us: float
    skew_us: float
    mixed_us: float
    host_us: float
    sequence_us: float
    stage_us: float
    network: Collective
    network_bytes_per_s: float

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Engine:
        return cls(**{**raw, "network": Collective(**raw["network"])})


@dataclass(frozen=True, slots=True)
class Version:
    """What a version of vLLM does, with its defaults, that changes the parts of a step.

    `fused`: sums over the group take the norms over (Hopper and later). `overlapped`: the host
    works while the device does, and only the longer one counts.
    """

    fused: bool = True
    overlapped: bool = False


DEFAULT = Version()
