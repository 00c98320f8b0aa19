"""The parts of a model: weights as vLLM holds them, attention, layers, and how ranks share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["no", "rows", "columns", "vocabulary"]

# vLLM pads the vocabulary to a multiple of this (vocab_parallel_embedding.py).
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How many ways weights are split: `tensor` is TP.

    A routed expert is split `expert_tensor` ways: 1 with EP, DP × PCP × TP without. `experts` are
    those that the rank holds; None: all.
    """

    tensor: int
    expert_tensor: int
    experts: int | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One weight of a layer, by the checkpoint's own name: "self_attn.q_proj.weight".

    Parts of one weight that are split differently have the same name. A vector is rows × 1.
    `groups`: rows are split in whole groups (KV heads), replicated where ranks outnumber them.
    `experts`: so many are stacked. `made`: vLLM makes it when it loads, so it takes bytes but is
    no published parameter.
    """

    name: str
    rows: int
    columns: int = 1
    split: Split = "no"
    groups: int = 0
    experts: int = 0
    quantized: bool = False
    made: bool = False

    @property
    def parameters(self) -> int:
        """As published: nothing sharded, nothing padded."""
        return 0 if self.made else self.rows * self.columns * max(1, self.experts)

    def shard(self, sharding: Sharding) -> tuple[int, int, int]:
        """Rows, columns and copies (experts) on one rank; what does not divide is rounded up."""
        ways = sharding.expert_tensor if self.experts else sharding.tensor
        held = sharding.experts if sharding.experts is not None else self.experts
        copies = held if self.experts else 1
        if self.groups:
            return self.rows // self.groups * max(1, -(-self.groups // ways)), self.columns, copies
        if self.split == "rows":
            return -(-self.rows // ways), self.columns, copies
        if self.split == "columns":
            return self.rows, -(-self.columns // ways), copies
        if self.split == "vocabulary":
            return -(-padded(self.rows) // ways), self.columns, copies
        return self.rows, self.columns, copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What a layer's attention computes and caches.

    `head_size` and `value_size` are what the cache holds of K and of V for each KV head; MLA
    holds one latent of kv_lora_rank + qk_rope_head_dim and no V. `window` is the sliding window,
    or the chunk of chunked local attention.
    """

    kind: Literal["full", "sliding", "chunked", "mla"]
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    window: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of the decoder; `experts` are its routed experts, 0 in a dense layer."""

    attention: Attention
    tensors: tuple[Tensor, ...]
    experts: int = 0
    experts_per_token: int = 0


def padded(vocabulary: int) -> int:
    """The vocabulary as vLLM pads it."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
