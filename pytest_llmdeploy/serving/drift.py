"""Whether a running server is the one that its spec describes, setting by setting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from pytest_llmdeploy.evidence import Judgement, judged
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.plan.limits import block_size, max_num_batched_tokens, max_num_seqs
from pytest_llmdeploy.plan.memory import kv_cache_bytes, resolved_dtype
from pytest_llmdeploy.plan.rules.given import count, flag
from pytest_llmdeploy.serving.options import (
    CHOSEN_BY_VLLM,
    CommandLineError,
    Given,
    given_options,
    value_of,
)
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.probes.server_info import Setting, Settings, Value


class Match(StrEnum):
    """What became of a setting that is declared."""

    MATCHES = "MATCHES"
    DIFFERS = "DIFFERS"
    UNSEEN = "cannot be seen"


# What the blocks of a KV cache follow from.
_SIZING = {
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "block_size",
    "kv_cache_dtype",
    "max_model_len",
    "num_gpu_blocks_override",
}
Compared = Mapping[str, Mapping[str, Any]]


def drift(plan: Plan, servers: Mapping[str, Settings], replicas: int = 0) -> Judgement:
    """Every declared setting beside what each of the servers, by URL, shows of it. Of so many
    `replicas`, each may be one of the declared data-parallel copies.
    """
    compared = {url: _compared(plan, shown, replicas) for url, shown in servers.items()}
    verdicts: dict[str, set[Match]] = {}
    for each in compared.values():
        for name, entry in each.items():
            verdicts.setdefault(name, set()).add(entry["verdict"])
    counted = Counter(map(_worst, verdicts.values()))
    told = [f"{counted[Match.MATCHES]} match", f"{counted[Match.UNSEEN]} cannot be seen"]
    counts = ", ".join(text for text in told if not text.startswith("0 "))
    differences = ", ".join(_differences(compared))
    if counted.keys() == {Match.UNSEEN}:
        counts = f"the server shows none of them ({counts})"
    shown = (entry["source"] for each in compared.values() for entry in each.values())
    return judged(
        None if counted.keys() == {Match.UNSEEN} else not differences,
        f"{len(verdicts)} settings as declared",
        "; ".join(filter(None, [differences, counts])),
        measured=counted[Match.DIFFERS],
        limit=0,
        unit="settings",
        evidence={"source": ", ".join(dict.fromkeys(filter(None, shown))), "servers": compared},
    )


def declared(plan: Plan, copies: int) -> Mapping[str, Value]:
    """What the spec says of a server that has so many of the data-parallel `copies`, and what vLLM
    makes of what it leaves out, as far as the plan knows.
    """
    spec, arguments = plan.spec, _arguments(plan.spec)
    found = {
        "model": spec.served_model,
        "version": spec.engine.version if spec.engine else None,
        "tp": spec.parallel.tensor,
        "pp": spec.parallel.pipeline,
        "dp": copies,
        "world_size": spec.parallel.world_size * copies,
        "max_model_len": plan.max_model_len,
        **_scheduler(plan, arguments),
        **_cache(plan, arguments, copies),
        "dtype": _dtype(plan),
    }
    found |= {name: value for name, value in arguments.items() if name in found}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _scheduler(plan: Plan, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The flag, or the default that no other flag changes."""
    spec, shape = plan.spec, plan.shape
    given = {**(spec.serve.model_extra or {}), **arguments}
    sequences, tokens = spec.serve.max_num_seqs, spec.serve.max_num_batched_tokens
    if given.get("performance_mode", "balanced") == "balanced":
        sequences = sequences or max_num_seqs(spec)
        is_usual = spec.serve.enable_chunked_prefill is not False and not spec.parallel.expert
        if shape and plan.max_model_len and is_usual and not shape.towers:
            tokens = tokens or max_num_batched_tokens(spec, plan.max_model_len)
    return {
        "max_num_seqs": sequences,
        "max_num_batched_tokens": None if _is_latent_on_cpu(plan) else tokens,
    }


def _cache(plan: Plan, arguments: Mapping[str, Any], copies: int) -> Mapping[str, Any]:
    spec, shape, serve = plan.spec, plan.shape, plan.spec.serve
    fixed = kv_cache_bytes(spec)
    is_said = "gpu_memory_utilization" in serve.model_fields_set
    # A quantized checkpoint may bring the format of its KV cache along.
    is_plain = serve.kv_cache_dtype != "auto" or (shape is not None and shape.quantization is None)
    caching = (serve.model_extra or {}).get("enable_prefix_caching", True if shape else None)
    # On a GPU, the attention's kernels choose its default.
    on_cpu = spec.hardware.device.platform == "cpu"
    return {
        "block_size": block_size(spec, shape) if shape and on_cpu else serve.block_size,
        "kv_cache_dtype": serve.kv_cache_dtype if is_plain else None,
        "kv_cache_memory_bytes": fixed,
        # With a fixed KV cache, vLLM does not look at it.
        "gpu_memory_utilization": serve.gpu_memory_utilization if is_said or not fixed else None,
        "enable_prefix_caching": None if _is_latent_on_cpu(plan) else caching,
        **({} if arguments.keys() & _SIZING else _blocks(plan, copies)),
    }


def _is_latent_on_cpu(plan: Plan) -> bool:
    """Whether vLLM overrides flags for want of a kernel (platforms/cpu.py)."""
    on_cpu = plan.spec.hardware.device.platform == "cpu"
    return on_cpu and plan.shape is not None and plan.shape.layers[0].attention.kind == "mla"


def _blocks(plan: Plan, copies: int) -> Mapping[str, Any]:
    """The size of the KV cache where the plan knows it to the block. VLLM adds up the blocks of all
    copies, and not their tokens.
    """
    if (override := count(plan.spec, "num_gpu_blocks_override")) is not None:
        return {"num_gpu_blocks": override * copies}
    if plan.kv_cache is None or len(set(plan.kv_cache.blocks_range)) > 1:
        return {}
    found = {"num_gpu_blocks": plan.kv_cache.blocks * copies}
    return {**found, "kv_cache_size_tokens": plan.kv_cache.tokens}


def _dtype(plan: Plan) -> str | None:
    """What float32 becomes when nothing is said is for the device to choose."""
    if plan.spec.model.dtype != "auto" or plan.shape is None:
        return None if plan.spec.model.dtype == "auto" else plan.spec.model.dtype
    return None if plan.shape.dtype == "float32" else resolved_dtype(plan.spec, plan.shape)


def _arguments(spec: Spec) -> Mapping[str, Any]:
    """The flags of serve.extra_args with their values; none where vLLM would not read them."""
    try:
        given = [each for each in given_options(spec.serve.extra_args) if isinstance(each, Given)]
        values = {each.flag.name: value_of(each) for each in given}
    except CommandLineError:
        return {}
    return {name: None if value == CHOSEN_BY_VLLM else value for name, value in values.items()}


def _compared(plan: Plan, shown: Settings, replicas: int) -> Compared:
    if flag(plan.spec, "fingerprint_mode") == "hash":
        # One that is only a hash looks as if all sizes were 1.
        shown = {name: s for name, s in shown.items() if s.source != "system_fingerprint"}
    copies, dp = plan.spec.parallel.data, shown.get("dp")
    if replicas == copies and (dp is None or dp.value == 1):
        # Copies that know nothing of each other.
        copies = 1
    return {
        name: _entry(name, value, shown.get(name)) for name, value in declared(plan, copies).items()
    }


def _entry(name: str, value: Value, setting: Setting | None) -> Mapping[str, Any]:
    if setting is None:
        return {"declared": value, "shown": None, "source": None, "verdict": Match.UNSEEN}
    verdict = Match.MATCHES if _agree(name, value, setting.value) else Match.DIFFERS
    found = {"declared": value, "shown": setting.value, "source": setting.source}
    return {**found, "verdict": verdict}


def _agree(name: str, value: Value, shown: Value) -> bool:
    if name == "version":
        try:
            return SpecifierSet(str(value)).contains(str(shown), prereleases=True)
        except InvalidVersion:
            return False
    if isinstance(value, str) or isinstance(shown, str):
        # There are formats of it that the platform chooses among.
        is_format = name == "kv_cache_dtype" and value == "fp8"
        return str(shown).startswith("fp8") if is_format else value == shown
    # Only a fraction is written down with less than all of its digits.
    return value == shown if type(value) is int else math.isclose(value, shown, rel_tol=1e-6)


def _worst(verdicts: Collection[Match]) -> Match:
    """What is to be said of a setting that several servers have: one of them may show it."""
    return next(
        match for match in (Match.DIFFERS, Match.MATCHES, Match.UNSEEN) if match in verdicts
    )


def _differences(compared: Mapping[str, Compared]) -> Iterator[str]:
    """What is otherwise, and where that is not so of all, of which servers."""
    found: dict[str, list[str]] = {}
    for url, each in compared.items():
        for name, entry in each.items():
            if entry["verdict"] is Match.DIFFERS:
                text = f"{name} is {entry['shown']}, not {entry['declared']}"
                found.setdefault(text, []).append(url)
    for text, urls in found.items():
        yield text if len(urls) == len(compared) else f"{text} ({', '.join(urls)})"


def _plain(value: Any) -> Value:
    """A quantity as the number that it is: units print for people."""
    if isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, int) else float(value)
