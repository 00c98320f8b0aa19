"""From a spec to a server that serves: launch it or attach to one, and wait until it is ready."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import Devices, read_used_gpus
from pytest_llmdeploy.probes.addresses import behind
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.probes.exporter import Exporter
from pytest_llmdeploy.probes.fields import CHANGING, Field
from pytest_llmdeploy.probes.host import staged
from pytest_llmdeploy.probes.replicas import cache_facts
from pytest_llmdeploy.probes.workers import Workers
from pytest_llmdeploy.serving.command import LaunchError, launch_command
from pytest_llmdeploy.serving.diagnosis import diagnose
from pytest_llmdeploy.serving.introspection import introspected
from pytest_llmdeploy.serving.listening import listeners
from pytest_llmdeploy.serving.process import ServerProcess, free_port
from pytest_llmdeploy.serving.readiness import PortTakenError, Progress, Readiness
from pytest_llmdeploy.serving.server import Server, ServerFailedError, unwatched
from pytest_llmdeploy.spec import Spec

# A port may be taken between its choice and the server's bind: so often another one is tried.
_OTHER_PORTS = 3
# A server to attach to is expected to be there.
_ATTACH_SECONDS = 3.0
_UNSEEN = "unsupported: the server's processes can't be seen from here"


def launch(
    spec: Spec, log: Path, progress: Progress, *, introspect: bool = False
) -> tuple[Server, ServerProcess]:
    """Starts a server for `spec` and waits until it has answered a real completion; one whose
    workers can be asked, with `introspect`.

    Raises:
        ServerFailedError: with the cause, the decisive log line and a hint; nothing is left.
    """
    deadline = time.monotonic() + spec.serve.startup_timeout.seconds
    for _ in range(_OTHER_PORTS):
        try:
            return _launch(spec, log, progress, deadline, introspect)
        except PortTakenError as taken:
            progress(f"server   trying another port: {str(taken).splitlines()[0]}")
    return _launch(spec, log, progress, deadline, introspect)


def _launch(
    spec: Spec, log: Path, progress: Progress, deadline: float, introspect: bool
) -> tuple[Server, ServerProcess]:
    port = free_port()
    try:
        command = launch_command(spec, port)
        command = introspected(command) if introspect else command
        process = ServerProcess(command, log, devices=_uuids(spec), spec=spec.name)
    except (LaunchError, OSError) as error:
        raise ServerFailedError(str(error)) from None
    key = command.environment.get("VLLM_API_KEY", os.environ.get("VLLM_API_KEY"))
    endpoint = Endpoint(f"http://127.0.0.1:{port}", key)
    seconds, began = spec.serve.startup_timeout.seconds, process.started
    try:
        readiness = Readiness(endpoint, progress, seconds, deadline, process, began=began)
        return _Start(spec, readiness).ready(), process
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
    said = spec.attach.model_fields_set if spec.attach else ()
    blame = "attach" if said else "--deploy-url"
    deadline = time.monotonic() + _ATTACH_SECONDS
    readiness = Readiness(_engine(url), progress, _ATTACH_SECONDS, deadline, blame=blame)
    return _Start(spec, readiness, exporter=exporter).ready()


@dataclass
class _Start:
    spec: Spec
    readiness: Readiness
    exporter: Exporter | None = None
    replicas: Sequence[Endpoint] = ()

    @property
    def endpoint(self) -> Endpoint:
        return self.readiness.endpoint

    @property
    def process(self) -> ServerProcess | None:
        return self.readiness.process

    def ready(self) -> Server:
        readiness = self.readiness
        readiness.wait_for_health()
        self.replicas = readiness.ask(lambda: _replicas(self.spec))
        models = readiness.ask(self.endpoint.models)
        version = readiness.ask(self.endpoint.version)
        readiness.reach("models")
        wanted = self.spec.served_model
        ids = [str(model.get("id")) for model in models]
        # What it serves is judged by a check; to load it, any name that it knows will do.
        model = models[ids.index(wanted)] if wanted in ids else models[0] if models else {}
        completion = readiness.first_completion(str(model.get("id", wanted)))
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
            stages=readiness.stages,
            pid=self.process.pid if self.process else None,
        )

    def _cache_facts(self) -> Mapping[str, str]:
        """Those of the replica that holds the least: each gets its share of the requests."""
        return min(map(cache_facts, self.replicas or [self.endpoint]), key=_held)

    def _time_to_first_token(self) -> Evidence:
        source = "from the launch to the first token of the first completion"
        if self.process is None:
            problem = "unsupported: this run did not launch the server"
            return Evidence(None, "ms", source, problem=problem)
        return Evidence(self.readiness.stages["first completion"] * 1000, "ms", source, time.time())

    def _devices(self, fields: Collection[Field] | None = None) -> Devices:
        # The GPUs of a server that died are empty, and look like a good result.
        if death := self._death():
            return Devices((), "the server's devices", f"error: {death}")
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


def _uuids(spec: Spec) -> Sequence[str]:
    """The GPUs that a server of this spec gets."""
    if spec.hardware.device.platform != "cuda":
        return ()
    return [device.identity for device in read_used_gpus(spec, ()) if device.identity]


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
    port = urlsplit(endpoint.url).port
    if not endpoint.is_loopback or port is None:
        return None
    return next(filter(None, sorted(listeners(port), key=str)), None)
