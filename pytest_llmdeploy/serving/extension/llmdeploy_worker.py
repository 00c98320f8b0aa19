"""What a vLLM worker knows of itself; mixed into its class by --worker-extension-cls.

It runs within vLLM, whatever version that is: nothing is imported but the standard library, and
what is not there is None. It must not fail: after a call that does, vLLM mixes up the answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class Facts:
    """The method that /collective_rpc calls. Its name must be none that a worker has."""

    def llmdeploy_facts(self) -> dict[str, Any]:
        worker: Any = self
        runner: Any = getattr(worker, "model_runner", None)
        return {
            "pid": os.getpid(),
            "rank": _whole(lambda: worker.rank),
            "local_rank": _whole(lambda: worker.local_rank),
            "device": str(getattr(worker, "device", None)),
            "resident_bytes": _whole(_resident_bytes),
            "weights_bytes": _whole(lambda: runner.model_memory_usage),
            "activation_bytes": _whole(lambda: worker.peak_activation_memory),
            "cuda_graph_bytes": _whole(lambda: worker.cudagraph_memory_estimate),
            "kv_bytes": _whole(lambda: _storage_bytes(runner.kv_caches)),
            "kv_available_bytes": _whole(lambda: worker.available_kv_cache_memory_bytes),
            "kv_blocks": _whole(lambda: worker.cache_config.num_gpu_blocks),
            "consumed_bytes": _whole(lambda: worker.total_consumed),
            "requested_bytes": _whole(lambda: _requested(worker)),
            "total_bytes": _whole(lambda: worker.init_snapshot.total_memory),
            "free_bytes": _whole(lambda: worker.init_snapshot.free_memory),
        }


def _whole(read: Callable[[], Any]) -> int | None:
    try:
        return int(read())
    except Exception:  # noqa: BLE001 - see above
        return None


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _requested(worker: Any) -> Any:
    """What vLLM may fill; a worker on the CPU has another name for it."""
    on_gpu = getattr(worker, "requested_memory", None)
    return worker.requested_cpu_memory if on_gpu is None else on_gpu


def _storage_bytes(tensors: Any) -> int:
    """The bytes behind some tensors; those that share them count once."""
    storages = [tensor.untyped_storage() for tensor in _flat(tensors)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _flat(tensors: Any) -> Iterator[Any]:
    if isinstance(tensors, Iterable) and not hasattr(tensors, "untyped_storage"):
        for tensor in tensors:
            yield from _flat(tensor)
    else:
        yield tensors
