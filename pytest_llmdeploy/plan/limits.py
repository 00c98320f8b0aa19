"""The limits that vLLM derives from its flags: batches, sequences, lengths, blocks.

Mirrors vLLM 0.32 (engine/arg_utils.py: get_batch_defaults, config/vllm.py, platforms/).
"""

from __future__ import annotations

from pytest_llmdeploy.plan.kv_cache import Paging
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

GIB = 1024**3


def max_model_len(spec: Spec, shape: ModelShape) -> int:
    """The flag, or what vLLM derives from the model."""
    return spec.serve.max_model_len or shape.default_length


def max_num_seqs(spec: Spec) -> int:
    """The flag, or vLLM's default for a server, no more than the tokens that are given."""
    default = _defaults(spec)[1]
    return spec.serve.max_num_seqs or min(default, spec.serve.max_num_batched_tokens or default)


def max_num_batched_tokens(spec: Spec, length: int) -> int:
    """The flag, or vLLM's default for a server, no more than the sequences can use."""
    if spec.serve.max_num_batched_tokens:
        return spec.serve.max_num_batched_tokens
    return min(_defaults(spec)[0], max_num_seqs(spec) * length)


def block_size(spec: Spec, shape: ModelShape) -> int:
    """Tokens per KV block: the flag, or vLLM's default for the platform and the attention."""
    latent = shape.layers[0].attention.kind == "mla"
    on_cpu = spec.hardware.device.platform == "cpu"
    if latent and on_cpu:
        return 16  # whatever the flag says: its kernel knows no other
    if spec.serve.block_size:
        return spec.serve.block_size
    return 128 if on_cpu else 64 if latent else 16


def paging(spec: Spec, shape: ModelShape) -> Paging:
    """How blocks are counted; asynchronous scheduling, the default on GPUs, keeps one batch more
    in flight than there are pipeline stages.
    """
    ahead = spec.hardware.device.platform == "cuda" and spec.serve.async_scheduling is not False
    batches = spec.parallel.pipeline + ahead
    length = max_model_len(spec, shape)
    return Paging(
        block_size=block_size(spec, shape),
        in_flight=batches * max_num_batched_tokens(spec, length),
        decode_context=spec.parallel.decode_context,
    )


def _defaults(spec: Spec) -> tuple[int, int]:
    """Batched tokens and sequences of a server, by its device."""
    device = spec.hardware.device
    if device.platform == "cpu":
        ranks = spec.parallel.world_size
        return 2048 * ranks, 128 * ranks
    visible = device.visible_bytes or 0
    if visible >= 160 * GIB:
        return 16_384, 1024
    if visible >= 70 * GIB and not device.name.startswith("A100"):
        return 8192, 1024
    return 2048, 256
