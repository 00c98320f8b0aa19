"""vLLM's worker processes on the CPU platform, found by their titles; each is a device."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.spec import Spec

_TITLE = re.compile(r"VLLM::(EngineCore|Worker)((?:_[A-Z]+\d+)*)", re.ASCII)
_COORDINATE = re.compile(r"_([A-Z]+)(\d+)", re.ASCII)
_SOURCE = "process titles and private memory"
_ANONYMOUS = "RssAnon"
_SHORTEST_SECONDS = 0.2
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class Workers:
    """The workers among the descendants of the process `root`, by rank.

    They are looked at again and again: what a worker uses of its cores is counted from one look to
    the next, the first time from its own start.
    """

    def __init__(self, spec: Spec, root: int) -> None:
        self.spec = spec
        self.root = root
        self._found: list[tuple[int, psutil.Process]] = []
        self._usage: dict[psutil.Process, _Usage] = {}

    def read(self) -> Devices:
        try:
            found = self._alive() or self._search()
        except psutil.NoSuchProcess:
            return Devices((), _SOURCE, problem="error: the server's process is gone")
        self._found = found
        return Devices(tuple(self._device(*worker, len(found)) for worker in found), _SOURCE)

    def _alive(self) -> list[tuple[int, psutil.Process]]:
        """Those of the last look, if they are all that there must be, and are still there: to look
        for them among all processes costs more than to ask them.
        """
        are_all = len(self._found) == self.spec.parallel.devices
        return self._found if are_all and all(_is_alive(p) for _, p in self._found) else []

    def _search(self) -> list[tuple[int, psutil.Process]]:
        processes = psutil.Process(self.root).children(recursive=True)
        return sorted(_workers(self.spec, processes), key=lambda worker: worker[0])

    def _device(self, rank: int, process: psutil.Process, count: int) -> Device:
        now = time.time()
        declared = self.spec.hardware.device.memory
        if declared is not None:
            total = Evidence(declared, "B", "hardware.device.memory of the spec", now)
        else:
            total = Evidence(_machine_bytes() / count, "B", f"this machine's memory / {count}", now)
        parallel = self.spec.parallel
        usage = self._usage.setdefault(process, _Usage(process))
        return Device(
            name=f"rank {rank}",
            identity=str(process.pid),
            kind="cpu",
            total=total,
            used=_private_bytes(process),
            reserved=Evidence(0, "B", total.source, now),
            stage=rank // (parallel.tensor * parallel.prefill_context) % parallel.pipeline,
            fields={Field.UTILIZATION: usage.read()},
        )


def read_workers(spec: Spec, root: int) -> Devices:
    """The workers among the descendants of the process `root`, once."""
    return Workers(spec, root).read()


class _Usage:
    """What a process uses of its cores, from one look to the next."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        age = time.time() - process.create_time()
        self._marks: list[tuple[float, float]] = [(time.monotonic() - age, 0.0)] * 2

    def read(self) -> Evidence:
        source, now = "CPU time of the process since the look before", time.monotonic()
        seconds, cores = _cpu_seconds(self._process), _cores(self._process)
        if seconds is None or not cores:
            return Evidence(None, "fraction", source, time.time(), "lost: the worker is gone")
        earlier, latest = self._marks
        # CPU time is counted in steps of 10 ms: of two looks at once, the second tells nothing.
        is_due = now - latest[0] >= _SHORTEST_SECONDS
        since, before = latest if is_due else earlier
        self._marks = [latest, (now, seconds)] if is_due else self._marks
        share = (seconds - before) / max(now - since, _SHORTEST_SECONDS) / cores
        return Evidence(min(1.0, share), "fraction", source, time.time())


def _cpu_seconds(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return times.user + times.system


def _cores(process: psutil.Process) -> int:
    try:
        return len(process.cpu_affinity() or ())
    except psutil.Error:
        return 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


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


def _private_bytes(process: psutil.Process) -> Evidence:
    """What the kernel counts anyway. The sum over all mappings (USS) differs by the little that a
    process writes of its files, and takes 15 ms where this takes 0.1 ms.
    """
    source, now = f"/proc/<pid>/status: {_ANONYMOUS}", time.time()
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except PermissionError:
        return Evidence(None, "B", source, now, "no permission: /proc/<pid>/status")
    except OSError:
        return Evidence(None, "B", source, now, "lost: the worker is gone")
    found = re.search(rf"^{_ANONYMOUS}:\s+(\d+) kB", text, re.MULTILINE)
    # A process that has ended has no memory any more.
    if found is None:
        return Evidence(None, "B", source, now, "lost: the worker is gone")
    return Evidence(int(found[1]) * 1024, "B", source, now)


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
