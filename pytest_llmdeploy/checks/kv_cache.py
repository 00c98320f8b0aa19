"""Whether the KV cache holds the declared concurrency: as planned, and as the server reports it."""

import math

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.spec.require import KvCacheRequire

_MORE = "raise serve.gpu_memory_utilization, use more devices, or lower tokens_per_sequence"


@check("KV capacity, planned", require="kv_cache", hint=_MORE)
def planned_kv_capacity(plan: Plan, spec: Spec, required: KvCacheRequire, expect: Expect) -> None:
    """The KV cache will hold the declared sequences, at their declared length, all at once."""
    sequences, tokens = required.concurrent_sequences, required.tokens_per_sequence
    expect.judge(requirements.kv_capacity(plan, spec, sequences, tokens))


@check("KV capacity", require="kv_cache", hint=_MORE)
def kv_capacity(
    server: Server, plan: Plan, spec: Spec, required: KvCacheRequire, expect: Expect
) -> None:
    """The KV caches that the server allocated hold the declared sequences at once."""
    sequences = required.concurrent_sequences
    tokens = required.tokens_per_sequence or server.max_model_len or 0
    requirement = f"{sequences:,} × {tokens:,} tokens"
    facts = server.cache
    size, block = facts.get("kv_cache_size_tokens", ""), facts.get("block_size", "")
    source = "vllm:cache_config_info"
    if not (size.isdigit() and block.isdigit() and tokens):
        result = f"unsupported: {source} does not say the size of the KV cache"
        evidence = {"source": source, "labels": dict(facts)}
        expect.judge(
            Judgement(
                status=Status.ERROR, requirement=requirement, result=result, evidence=evidence
            )
        )
        return
    # Every copy has as much (vLLM does not add these up).
    held = _held(plan, server, int(size), int(block), tokens) * spec.parallel.data
    expect.judge(
        judged(
            held >= sequences,
            requirement,
            f"{held:,} × {tokens:,}",
            measured=held,
            bound=held,
            limit=sequences,
            unit="sequences",
            margin=(held - sequences) / sequences,
            evidence={"source": source, "kv_cache_tokens": int(size), "block_size": int(block)},
        )
    )


def _held(plan: Plan, server: Server, size: int, block: int, tokens: int) -> int:
    """Sequences of `tokens` in a cache that vLLM calls `size` tokens large: a sequence takes whole
    blocks, in every group of layers.
    """
    length = server.max_model_len or plan.max_model_len
    if plan.kv_cache is None or plan.kv_cache.block_size != block or not length:
        return size // (-(-tokens // block) * block)
    # VLLM rounds the tokens down.
    blocks = math.ceil(size * plan.kv_cache.blocks_per_sequence(length) / length)
    return blocks // plan.kv_cache.blocks_per_sequence(tokens)
