"""Whether the KV cache holds the declared concurrency: as planned, and as the server reports it."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.plan import Plan, requirements
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec.model import KvCacheRequire

_MORE = "raise serve.gpu_memory_utilization, use more devices, or lower tokens_per_sequence"


@check("KV capacity, planned", require="kv_cache", hint=_MORE)
def planned_kv_capacity(plan: Plan, required: KvCacheRequire, expect: Expect) -> None:
    """The KV cache will hold the declared sequences, at their declared length, all at once."""
    sequences, tokens = required.concurrent_sequences, required.tokens_per_sequence
    expect.judge(requirements.kv_capacity(plan, sequences, tokens))


@check("KV capacity", require="kv_cache", hint=_MORE)
def kv_capacity(server: Server, required: KvCacheRequire, expect: Expect) -> None:
    """The KV cache that the server allocated holds the declared sequences at once."""
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
    # A sequence takes whole blocks.
    held = int(size) // (-(-tokens // int(block)) * int(block))
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
