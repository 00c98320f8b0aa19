"""From a spec to a server that serves: launch it or attach to one, and wait until it is ready."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import Devices, read_used_gpus
from pytest_llmdeploy.probes.addresses import behind
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.exporter import Exporter
from pytest_llmdeploy.probes.fields import CHANGING, Field
from pytest_llmdeploy.probes.host import staged
from pytest_llmdeploy.probes.replicas import cache_facts
from pytest_llmdeploy.probes.workers import Workers
from pytest_llmdeploy.serving.command import LaunchError, launch_command
from pytest_llmdeploy.serving.diagnosis import diagnose
from pytest_llmdeploy.serving.process import ServerProcess, free_port
from pytest_llmdeploy.serving.server import Server, ServerFailedError, unwatched
from pytest_llmdeploy.spec import Spec

Progress = Callable[[str], None]
_T = TypeVar("_T")

_POLL_SECONDS = 0.2
_PROBE_TOKENS = 4
_PROBE_PROMPT = [11, 12, 13, 14]
_COMPLETION_SECONDS = 60.0
# A server to attach to is expected to be there.
_ATTACH_SECONDS = 3.0
_UNSEEN = "unsupported: the server's processes can't be seen from here"


def launch(spec: Spec, log: Path, progress: Progress) -> tuple[Server, ServerProcess]:
    """Starts a server for `spec` and waits until it has answered a real completion.

    Raises:
        ServerFailedError: with the cause, the decisive log line and a hint; nothing is left.
    """
    port = free_port()
    try:
        command = launch_command(spec, port)
        process = ServerProcess(command, log)
    except (LaunchError, OSError) as error:
        raise ServerFailedError(str(error)) from None
    key = command.environment.get("VLLM_API_KEY", os.environ.get("VLLM_API_KEY"))
    endpoint = Endpoint(f"http://127.0.0.1:{port}", key)
    try:
        return _Start(spec, endpoint, progress, process).ready(), process
    except BaseException:
        process.stop()
        raise


def attach(spec: Spec, url: str, progress: Progress) -> Server:
    """The server at `url`, which somebody else started and will stop.

    Raises:
        ServerFailedError: when nothing there can serve the spec's model.
    """
    probes = spec.attach.probes if spec.attach else None
    exporter = Exporter.of(probes) if probes else None
    return _Start(spec, _engine(url), progress, exporter=exporter).ready()


@dataclass
class _Start:
    spec: Spec
    endpoint: Endpoint
    progress: Progress
    process: ServerProcess | None = None
    began: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)
    exporter: Exporter | None = None
    replicas: Sequence[Endpoint] = ()

    def ready(self) -> Server:
        self._wait_for_health()
        self.replicas = self._answer(lambda: _replicas(self.spec))
        models = self._answer(self.endpoint.models)
        version = self._answer(self.endpoint.version)
        self._stage("models")
        wanted = self.spec.served_model
        ids = [str(model.get("id")) for model in models]
        # What it serves is judged by a check; to load it, any name that it knows will do.
        model = models[ids.index(wanted)] if wanted in ids else models[0] if models else {}
        name = str(model.get("id", wanted))
        completion = self._answer(
            lambda: self.endpoint.complete(
                name, _PROBE_PROMPT, _PROBE_TOKENS, timeout=_COMPLETION_SECONDS
            )
        )
        self._stage("first completion")
        return Server(
            spec=self.spec,
            endpoint=self.endpoint,
            command=str(self.process.command) if self.process else "",
            model=model,
            version=version,
            fingerprint=completion.fingerprint,
            cache=self._cache_facts(),
            time_to_first_token=self._time_to_first_token(),
            read_devices=self._devices,
            read_death=self._death,
            read_xids=self.exporter.xids if self.exporter else unwatched,
            replicas=self.replicas,
            read_pids=self._pids,
            read_changing=lambda: self._devices(CHANGING),
            stages=self.stages,
            pid=self.process.pid if self.process else None,
        )

    def _wait_for_health(self) -> None:
        allowed = self.spec.serve.startup_timeout
        seconds = allowed.seconds if self.process else _ATTACH_SECONDS
        while not self.endpoint.is_healthy():
            if self.process and self.process.returncode is not None:
                raise self._failed()
            if time.monotonic() - self.began > seconds:
                msg = f"no answer at {self.endpoint.url}/health within {seconds:g} s"
                raise self._failed(msg)
            last = self.process.last_line() if self.process else self.endpoint.url
            self.progress(f"server   starting, {time.monotonic() - self.began:.0f} s   {last}")
            time.sleep(_POLL_SECONDS)
        self._stage("healthy")

    def _stage(self, name: str) -> None:
        self.stages[name] = time.monotonic() - self.began
        self.progress(f"server   {name} after {self.stages[name]:.1f} s")

    def _answer(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except EndpointError as error:
            raise self._failed(str(error)) from None

    def _failed(self, what: str = "") -> ServerFailedError:
        if self.process is None:
            said = self.spec.attach.model_fields_set if self.spec.attach else ()
            where = "attach" if said else "--deploy-url"
            return ServerFailedError(f"{what}\nhint: check {where}, and that the server is up")
        found = diagnose(self.process.log_text(), self.process.returncode)
        lines = [f"the server did not become ready: {found.cause}"]
        lines += [f"it: {what}"] if what and found.cause not in what else []
        lines += [f"log: {found.line}"] if found.line else []
        lines += [f"hint: {found.hint}"] if found.hint else []
        lines.append(f"command: {self.process.command}")
        return ServerFailedError("\n".join([*lines, f"whole log: {self.process.log}"]))

    def _cache_facts(self) -> Mapping[str, str]:
        """Those of the replica that holds the least: each gets its share of the requests."""
        return min(map(cache_facts, self.replicas or [self.endpoint]), key=_held)

    def _time_to_first_token(self) -> Evidence:
        source = "from the launch to the first token of the first completion"
        if self.process is None:
            problem = "unsupported: this run did not launch the server"
            return Evidence(None, "ms", source, problem=problem)
        return Evidence(self.stages["first completion"] * 1000, "ms", source, time.time())

    def _devices(self, fields: Collection[Field] | None = None) -> Devices:
        if self.exporter is not None:
            return staged(self.spec, self.exporter.devices())
        if self.spec.hardware.device.platform == "cuda":
            if not self.endpoint.is_loopback:
                return Devices((), "NVML", "unsupported: the server runs on another machine")
            return read_used_gpus(self.spec, fields)
        return self._workers.read() if self._workers else Devices((), "process titles", _UNSEEN)

    @cached_property
    def _root(self) -> int | None:
        """The server's own process, where it can be seen."""
        return self.process.pid if self.process else _listener(self.endpoint)

    @cached_property
    def _workers(self) -> Workers | None:
        return Workers(self.spec, self._root) if self._root is not None else None

    def _pids(self) -> frozenset[int]:
        if self._root is None:
            return frozenset()
        try:
            root = psutil.Process(self._root)
            return frozenset({root.pid, *(p.pid for p in root.children(recursive=True))})
        except psutil.NoSuchProcess:
            return frozenset()

    def _death(self) -> str:
        if self.process is None or self.process.returncode is None:
            return ""
        found = diagnose(self.process.log_text(), self.process.returncode)
        return f"the server died: {found}"


def _engine(url: str) -> Endpoint:
    return Endpoint(url.rstrip("/").removesuffix("/v1"), os.environ.get("VLLM_API_KEY"))


def _replicas(spec: Spec) -> Sequence[Endpoint]:
    """Everyone behind every name of attach.engines, once."""
    urls = spec.attach.engines if spec.attach else ()
    return list(dict.fromkeys(found for url in urls for found in behind(_engine(url))))


def _held(facts: Mapping[str, str]) -> float:
    """The tokens that a KV cache holds; of one that does not say so, no bound."""
    text = facts.get("kv_cache_size_tokens", "")
    return int(text) if text.isdecimal() else math.inf


def _listener(endpoint: Endpoint) -> int | None:
    """The process on this machine that listens where `endpoint` is, if it can be seen."""
    if not endpoint.is_loopback:
        return None
    port = urlsplit(endpoint.url).port
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    listening = (c for c in connections if c.status == psutil.CONN_LISTEN and c.laddr)
    return next(
        (c.pid for c in listening if getattr(c.laddr, "port", None) == port and c.pid), None
    )
