"""What every replica of a deployment says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError

_CACHE = "vllm:cache_config_info"
_MOST_AT_ONCE = 32
# What a replica measures when it starts; the others are what it was told.
_MEASURED = {"engine", "num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency"}


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica by its URL: what it serves and how, or the `problem` why nobody knows."""

    url: str
    models: Sequence[str] = ()
    max_model_len: str = ""
    version: str = ""
    cache: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def settings(self) -> Mapping[str, str]:
        """What must be the same of all replicas, by name."""
        told = {name: text for name, text in self.cache.items() if name not in _MEASURED}
        return {
            "models": ", ".join(self.models),
            "max_model_len": self.max_model_len,
            "version": self.version,
            **told,
        }


def read_replicas(endpoints: Sequence[Endpoint]) -> Sequence[Replica]:
    """What they say, asked at the same time: who does not answer holds up nobody else."""
    with ThreadPoolExecutor(min(len(endpoints), _MOST_AT_ONCE) or 1) as pool:
        return list(pool.map(_read, endpoints))


def cache_facts(endpoint: Endpoint) -> Mapping[str, str]:
    """The labels of `vllm:cache_config_info` of its first engine; empty when it has none."""
    try:
        return _first(endpoint)
    except EndpointError:
        return {}


def _first(endpoint: Endpoint) -> Mapping[str, str]:
    found = endpoint.metrics().labels(_CACHE)
    return min(found, key=lambda labels: labels.get("engine", ""), default={})


def _read(endpoint: Endpoint) -> Replica:
    try:
        if not endpoint.is_healthy():
            return Replica(endpoint.url, problem="/health does not answer 200")
        models = endpoint.models()
        lengths = {str(model.get("max_model_len")) for model in models}
        return Replica(
            endpoint.url,
            sorted(str(model.get("id")) for model in models),
            ", ".join(sorted(lengths)),
            endpoint.version(),
            _first(endpoint),
        )
    except EndpointError as error:
        return Replica(endpoint.url, problem=str(error))
