"""From a spec to a server that serves: launch it or attach to one, and wait until it is ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import Devices, read_used_gpus
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.workers import read_workers
from pytest_llmdeploy.serving.command import LaunchError, launch_command
from pytest_llmdeploy.serving.diagnosis import diagnose
from pytest_llmdeploy.serving.process import ServerProcess, free_port
from pytest_llmdeploy.serving.server import Server, ServerFailedError
from pytest_llmdeploy.spec import Spec

Progress = Callable[[str], None]
_T = TypeVar("_T")

_POLL_SECONDS = 0.2
_PROBE_TOKENS = 4
_PROBE_PROMPT = [11, 12, 13, 14]
_COMPLETION_SECONDS = 60.0
# A server to attach to is expected to be there.
_ATTACH_SECONDS = 3.0


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
    endpoint = Endpoint(url.rstrip("/").removesuffix("/v1"), os.environ.get("VLLM_API_KEY"))
    return _Start(spec, endpoint, progress).ready()


@dataclass
class _Start:
    spec: Spec
    endpoint: Endpoint
    progress: Progress
    process: ServerProcess | None = None
    began: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    def ready(self) -> Server:
        self._wait_for_health()
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
            return ServerFailedError(f"{what}\nhint: check --deploy-url, and that the server is up")
        found = diagnose(self.process.log_text(), self.process.returncode)
        lines = [f"the server did not become ready: {found.cause}"]
        lines += [f"it: {what}"] if what and found.cause not in what else []
        lines += [f"log: {found.line}"] if found.line else []
        lines += [f"hint: {found.hint}"] if found.hint else []
        lines.append(f"command: {self.process.command}")
        return ServerFailedError("\n".join([*lines, f"whole log: {self.process.log}"]))

    def _cache_facts(self) -> Mapping[str, str]:
        try:
            found = self.endpoint.metrics().labels("vllm:cache_config_info")
        except EndpointError:
            return {}
        return min(found, key=lambda labels: labels.get("engine", ""), default={})

    def _time_to_first_token(self) -> Evidence:
        source = "from the launch to the first token of the first completion"
        if self.process is None:
            problem = "unsupported: this run did not launch the server"
            return Evidence(None, "ms", source, problem=problem)
        return Evidence(self.stages["first completion"] * 1000, "ms", source, time.time())

    def _devices(self) -> Devices:
        root = self.process.pid if self.process else _listener(self.endpoint)
        if self.spec.hardware.device.platform == "cuda":
            if not self.endpoint.is_loopback:
                return Devices((), "NVML", "unsupported: the server runs on another machine")
            return read_used_gpus(self.spec)
        if root is None:
            problem = "unsupported: the server's processes can't be seen from here"
            return Devices((), "process titles", problem)
        return read_workers(self.spec, root)

    def _death(self) -> str:
        if self.process is None or self.process.returncode is None:
            return ""
        found = diagnose(self.process.log_text(), self.process.returncode)
        return f"the server died: {found}"


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
