"""vLLM's worker processes on the CPU platform, found by their titles; each is a device."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.spec import Spec

_TITLE = re.compile(r"VLLM::(EngineCore|Worker)((?:_[A-Z]+\d+)*)", re.ASCII)
_COORDINATE = re.compile(r"_([A-Z]+)(\d+)", re.ASCII)
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def read_workers(spec: Spec, root: int) -> Devices:
    """The workers among the descendants of the process `root`, by rank."""
    source = "process titles and private memory (USS)"
    try:
        processes = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return Devices((), source, problem="error: the server's process is gone")
    workers = sorted(_workers(spec, processes), key=lambda worker: worker[0])
    return Devices(
        tuple(_device(spec, rank, process, len(workers)) for rank, process in workers), source
    )


def _workers(spec: Spec, processes: Iterable[psutil.Process]) -> list[tuple[int, psutil.Process]]:
    titles = {process: title for process in processes if (title := _title(process))}
    engines = {p: t for p, t in titles.items() if t[1] == "EngineCore"}
    workers = {p: t for p, t in titles.items() if t[1] == "Worker"}
    found = []
    # With VLLM_ENABLE_V1_MULTIPROCESSING=0 the engine is its own worker.
    for process, title in (workers or engines).items():
        parent = _parent(process) if workers else None
        at = {"DP": 0, "PP": 0, "PCP": 0, "TP": 0}
        for named in filter(None, (engines.get(parent) if parent else None, title)):
            at |= {axis: int(number) for axis, number in _COORDINATE.findall(named[2])}
        found.append((_rank(spec, at), process))
    return found


def _rank(spec: Spec, at: dict[str, int]) -> int:
    parallel = spec.parallel
    stage = at["DP"] * parallel.pipeline + at["PP"]
    return (stage * parallel.prefill_context + at["PCP"]) * parallel.tensor + at["TP"]


def _device(spec: Spec, rank: int, process: psutil.Process, count: int) -> Device:
    now = time.time()
    declared = spec.hardware.device.memory
    if declared is not None:
        total = Evidence(declared, "B", "hardware.device.memory of the spec", now)
    else:
        total = Evidence(_machine_bytes() / count, "B", f"this machine's memory / {count}", now)
    per_stage = spec.parallel.tensor * spec.parallel.prefill_context
    return Device(
        name=f"rank {rank}",
        identity=str(process.pid),
        kind="cpu",
        total=total,
        used=_private_bytes(process),
        reserved=Evidence(0, "B", total.source, now),
        stage=rank // per_stage % spec.parallel.pipeline,
    )


def _private_bytes(process: psutil.Process) -> Evidence:
    source = "private memory of the process (USS)"
    try:
        return Evidence(process.memory_full_info().uss, "B", source, time.time())
    except psutil.AccessDenied:
        return Evidence(None, "B", source, time.time(), "no permission: /proc/<pid>/smaps")
    except psutil.NoSuchProcess:
        return Evidence(None, "B", source, time.time(), "lost: the worker is gone")


def _machine_bytes() -> int:
    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _title(process: psutil.Process) -> re.Match[str] | None:
    try:
        return _TITLE.fullmatch(process.cmdline()[0])
    except (psutil.Error, IndexError):
        return None


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None
