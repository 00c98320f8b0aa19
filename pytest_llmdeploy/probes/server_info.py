"""What a running server says of its own settings, and where it says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.replicas import cache_facts

Value = str | float

_FINGERPRINT = re.compile(r"vllm-[^-]+-(?P<modes>(?:[a-z]+\d*-)*)(?:[0-9a-f]+|nohash)")
# Where a setting stands in /server_info; those of the cache are labels of the metric as well.
_PLACES = {
    "dtype": "model_config.dtype",
    "max_model_len": "model_config.max_model_len",
    "tp": "parallel_config.tensor_parallel_size",
    "pp": "parallel_config.pipeline_parallel_size",
    "dp": "parallel_config.data_parallel_size",
    "block_size": "cache_config.block_size",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "kv_cache_memory_bytes": "cache_config.kv_cache_memory_bytes",
    "kv_cache_size_tokens": "cache_config.kv_cache_size_tokens",
    "num_gpu_blocks": "cache_config.num_gpu_blocks",
    "gpu_memory_utilization": "cache_config.gpu_memory_utilization",
    "enable_prefix_caching": "cache_config.enable_prefix_caching",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
}
_PROBE_PROMPT = [11, 12, 13, 14]
_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A value by its type, and which of the server's answers has it."""

    value: Value
    source: str


Settings = Mapping[str, Setting]


def parallel_sizes(fingerprint: str) -> Mapping[str, int]:
    """Sizes that a system fingerprint gives away ({"tp": 2}); empty when it is hidden."""
    match = _FINGERPRINT.fullmatch(fingerprint)
    if match is None:
        return {}
    sizes = {"tp": 1, "pp": 1, "dp": 1}
    for mode in match["modes"].split("-"):
        name = mode.rstrip("0123456789")
        if name != mode:
            sizes[name] = int(mode[len(name) :])
    return sizes


def settings_told(
    model: Mapping[str, Any], version: str, sizes: Mapping[str, int], cache: Mapping[str, str]
) -> Settings:
    """The settings in what a server tells everybody: its entry of /v1/models, its version, the
    sizes in its fingerprint, the labels of `vllm:cache_config_info`.
    """
    found: dict[str, tuple[Value | None, str]] = {
        "model": (model.get("id"), "/v1/models"),
        "max_model_len": (model.get("max_model_len"), "/v1/models"),
        "version": (version or None, "/version"),
        **{name: (size, "system_fingerprint") for name, size in sizes.items()},
    }
    for name, place in _PLACES.items():
        part, _, label = place.partition(".")
        if part == "cache_config" and label in cache:
            found[name] = (_typed(cache[label]), "vllm:cache_config_info")
    return {name: Setting(value, at) for name, (value, at) in found.items() if value is not None}


def settings_in_dev_mode(endpoint: Endpoint) -> Settings:
    """The settings in what only a server with VLLM_SERVER_DEV_MODE=1 tells; empty of another."""
    found: dict[str, Setting] = {}
    config: Mapping[str, Any] = {}
    with suppress(EndpointError):
        config = endpoint.server_info()
    for name, place in _PLACES.items():
        part, _, key = place.partition(".")
        holder = config.get(part)
        value = _typed(holder.get(key)) if isinstance(holder, Mapping) else None
        if value is not None:
            found[name] = Setting(value, "/server_info")
    with suppress(EndpointError):
        found["world_size"] = Setting(endpoint.world_size(), "/get_world_size")
    return found


def read_settings(endpoint: Endpoint, wanted: str) -> Settings:
    """All that the server there, which should serve the model `wanted`, tells of its settings now;
    empty when it does not answer.
    """
    try:
        models, version = endpoint.models(), endpoint.version()
    except EndpointError:
        return {}
    model = next((each for each in models if each.get("id") == wanted), next(iter(models), {}))
    sizes = _sizes(endpoint, str(model.get("id", wanted)))
    told = settings_told(model, version, sizes, cache_facts(endpoint))
    return {**told, **settings_in_dev_mode(endpoint)}


def _sizes(endpoint: Endpoint, model: str) -> Mapping[str, int]:
    """Only an answer has the fingerprint: that to one token."""
    try:
        completion = endpoint.complete(model, _PROBE_PROMPT, 1, timeout=_PROBE_SECONDS)
    except EndpointError:
        return {}
    return parallel_sizes(completion.fingerprint)


def _typed(value: Any) -> Value | None:
    """A value of JSON, or of a label, which is a text whatever it says; None where it says nothing
    that can be compared.
    """
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str) or value in {"", "None"}:
        return None
    if value in {"True", "False"}:
        return value == "True"
    for number in (int, float):
        with suppress(ValueError):
            return number(value)
    return value.removeprefix("torch.")
