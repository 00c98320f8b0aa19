"""`llmdeploy init --from-url`: what a running server tells of itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.cli.draft import Draft
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.server_info import Settings, read_settings
from pytest_llmdeploy.spec.attach import checked_url

_PARALLEL = {"tp": "tensor", "pp": "pipeline", "dp": "data"}
# What it was told, or has settled on; what it measured when it started is nobody's wish.
_SERVE = (
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "kv_cache_dtype",
    "block_size",
    "enable_prefix_caching",
)


def draft_of_server(
    url: str, device: str | None, *, devices_per_node: int | None, nodes: int | None
) -> Draft:
    """The spec of the server that answers at `url`.

    Raises:
        RefusedError: when it is not a URL, nobody answers there as vLLM does, or `device` is
            needed, which no server tells.
    """
    try:
        base = checked_url(url).rstrip("/").removesuffix("/v1")
    except ValueError as error:
        raise RefusedError(f"--from-url: {error}") from None
    endpoint = Endpoint(base, os.environ.get("VLLM_API_KEY"))
    entry = _model(endpoint)
    shown = read_settings(endpoint, str(entry["id"]))
    if device is None:
        raise RefusedError(
            f"{url} serves {entry['id']}, but no server tells its devices: "
            "give --device, a GPU of the catalogue, or cpu"
        )
    found = {name: setting.value for name, setting in shown.items()}
    parallel = {key: found[name] for name, key in _PARALLEL.items() if found.get(name, 1) != 1}
    serve = {name: found[name] for name in _SERVE if name in found and found[name] != "auto"}
    model, served = _ids(endpoint, entry)
    if served:
        serve["served_model_name"] = served
    wanted = math.prod(int(size) for size in parallel.values())
    per_node = devices_per_node or (-(-wanted // nodes) if nodes else min(8, wanted))
    hardware = {"devices_per_node": per_node, "nodes": nodes or -(-wanted // per_node)}
    sections: Mapping[str, Any] = {
        "version": 1,
        "model": {"id": model} | ({"dtype": found["dtype"]} if "dtype" in found else {}),
        "engine": {"version": f"=={found['version']}"} if found.get("version") else {},
        "hardware": {"device": device, **hardware},
        "parallel": parallel,
        "serve": serve,
        "attach": {"url": url},
    }
    data = {name: section for name, section in sections.items() if section}
    proposals = {name: tuple(lines(endpoint, shown)) for name, lines in _UNKNOWN.items()}
    kept = {name: lines for name, lines in proposals.items() if lines}
    return Draft(data, f"what the server at {url} tells of itself", proposals=kept)


def _model(endpoint: Endpoint) -> Mapping[str, Any]:
    try:
        models = endpoint.models()
    except EndpointError as error:
        raise RefusedError(f"--from-url: {error}") from None
    # Adapters have the model that they belong to as their parent.
    named = [model for model in models if model.get("id") and not model.get("parent")]
    if not named:
        raise RefusedError(f"--from-url: {endpoint.url}/v1/models lists no model")
    return named[0]


def _ids(endpoint: Endpoint, entry: Mapping[str, Any]) -> tuple[str, str]:
    """The model's id, and the name under which it is served where that is another."""
    served, root = str(entry["id"]), str(entry.get("root") or entry["id"])
    # A folder of another machine says nothing here.
    is_here = endpoint.is_loopback and (Path(root) / "config.json").is_file()
    known = root if is_here or not root.startswith(("/", ".")) else served
    return known, served if served != known else ""


def _about_model(_endpoint: Endpoint, shown: Settings) -> Iterator[str]:
    if "dtype" not in shown:
        yield "dtype: bfloat16  # adjust: it does not tell"


def _about_parallel(_endpoint: Endpoint, shown: Settings) -> Iterator[str]:
    if "tp" not in shown:
        yield "tensor: 8  # adjust: it does not tell its strategy"


def _about_serve(_endpoint: Endpoint, shown: Settings) -> Iterator[str]:
    for name, value in (("max_num_seqs", 256), ("max_num_batched_tokens", 8192)):
        if name not in shown:
            yield f"{name}: {value}  # adjust: told only with VLLM_SERVER_DEV_MODE=1"


def _about_attach(endpoint: Endpoint, _shown: Settings) -> Iterator[str]:
    yield "engines: [http://replica-0:8000]  # adjust: the replicas behind it"
    if not endpoint.is_loopback:
        yield "load: true  # load from a run is allowed on this machine"


_UNKNOWN = {
    "model": _about_model,
    "parallel": _about_parallel,
    "serve": _about_serve,
    "attach": _about_attach,
}
