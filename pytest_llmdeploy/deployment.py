"""One deployment of one spec: plan, host, server, traffic, end; each made when first asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.probes import Devices, Host, read_host, read_used_gpus
from pytest_llmdeploy.probes.host import is_loopback
from pytest_llmdeploy.probes.occupancy import returned
from pytest_llmdeploy.serving import LaunchError, Server, ServerFailedError, Stopped
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.baseline import Earlier
    from pytest_llmdeploy.load.target import Target
    from pytest_llmdeploy.probes.watch import XidWatch
    from pytest_llmdeploy.serving.process import ServerProcess

# So long a driver may take to give back what a process held.
_RETURN_SECONDS = 5.0
_LOOK_SECONDS = 0.1


class RefusedError(Exception):
    """What was asked for is not done; the text says why."""


@dataclass
class Deployment:
    """`url` attaches instead of launching; `log` is where a launched server writes, `introspect`
    has its workers asked; `baseline` is the run to compare with.
    """

    spec: Spec
    log: Path
    url: str | None = None
    progress: Callable[[str], None] = lambda _text: None
    introspect: bool = False
    baseline: Earlier | None = None
    _process: ServerProcess | None = field(default=None, init=False)
    _server: Server | None = field(default=None, init=False)
    _failure: ServerFailedError | None = field(default=None, init=False)
    _server_json: dict[str, Any] | None = field(default=None, init=False)
    _at_rest: Devices | None = field(default=None, init=False)
    _watch: XidWatch | None = field(default=None, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    @cached_property
    def plan(self) -> Plan:
        return plan(self.spec)

    @cached_property
    def host(self) -> Host:
        self._sweep_abandoned()
        return read_host(self.spec, url=self.url)

    @property
    def refusal(self) -> str:
        """Why preflight refuses a launch; empty when nothing stands against it."""
        return self.plan.refusal

    def repairs(self) -> Sequence[str]:
        """What would mend the plan, or which requirement nothing on this hardware meets."""
        from pytest_llmdeploy.plan.repair import repairs  # noqa: PLC0415 - if it does not pass

        found = repairs(self.spec)
        mended = [f"all built-in plan checks pass with {repair}" for repair in found.repairs[:2]]
        return [*mended, *map(str, found.impossible)]

    @property
    def server(self) -> Server:
        """The server, ready.

        Raises:
            RefusedError: when the plan can't work.
            ServerFailedError: when it does not become ready, each time it is asked for.
        """
        if self._failure is not None:
            raise self._failure
        if self._server is None:
            if self.refusal:
                raise RefusedError(f"not launched, the plan cannot work: {self.refusal}")
            self._server = self._start()
        return self._server

    @cached_property
    def traffic(self) -> Traffic:
        """What came back of all workloads of the spec.

        Raises:
            RefusedError: when it may not be put under load.
        """
        from pytest_llmdeploy.load.runner import run_workloads  # noqa: PLC0415 - if live
        from pytest_llmdeploy.probes.sampler import Sampler  # noqa: PLC0415 - if live

        server = self.server
        if not self.spec.workloads:
            return Traffic({})
        target = self.target()
        with Sampler(server.read_changing or server.read_devices) as sampler:
            result = run_workloads(self.spec, target, dict(self._earlier()))
        result = replace(result, devices=sampler.recording)
        self.seconds["traffic"] = result.seconds
        return result

    def _earlier(self) -> Iterator[tuple[str, Mapping[str, Sequence[float]]]]:
        """The latencies of the baseline, of the workloads that must be no worse than there."""
        from pytest_llmdeploy.baseline import (  # noqa: PLC0415 - if there is one
            NotComparableError,
            latencies,
        )

        for workload in self.spec.workloads:
            if self.baseline is not None and workload.require.regression.limits:
                with suppress(NotComparableError):  # its rows say so
                    yield workload.name, latencies(self.baseline, workload)

    def target(self) -> Target:
        """The server as what is put under load.

        Raises:
            RefusedError, ServerFailedError: as `server`, and when it is on another machine and the
                spec does not say that it may be put under load.
        """
        from pytest_llmdeploy.load.target import Allowance, Target  # noqa: PLC0415 - if live
        from pytest_llmdeploy.serving.hang import stopped_processes  # noqa: PLC0415 - if live

        server, shape, attach = self.server, self.plan.shape, self.spec.attach
        if self.url is not None and not is_loopback(self.url) and not (attach and attach.load):
            host = urlsplit(self.url).netloc
            raise RefusedError(
                f"no load is sent to {host}, which is another machine: for the spec to allow it, "
                "write attach: {url: …, load: true}"
            )
        return Target(
            endpoint=server.endpoint,
            replicas=server.replicas,
            model=str(server.model.get("id")),
            death=server.read_death if server.pid else None,
            stopped=lambda: stopped_processes(server.read_pids()),
            progress=lambda text: self.progress(f"traffic  {text}"),
            allowance=Allowance(attach.max_requests, attach.max_concurrency)
            if attach
            else Allowance(),
            **({"vocab": shape.vocab} if shape else {}),
        )

    @cached_property
    def stopped(self) -> Stopped:
        """The end: a launched server is stopped, and what is left of it is looked for.

        Raises:
            RefusedError: when there is nothing to stop, for nothing was launched.
        """
        _ = self.server
        if self._process is None:
            raise RefusedError("this run did not launch the server, and does not stop it")
        stopped = self._process.stop()
        return replace(stopped, devices=self._returned()) if self._is_on_gpus else stopped

    def close(self) -> None:
        """Stops what was launched; harmless when nothing was, or when it is stopped already."""
        try:
            if self._process is not None:
                self._process.stop()
        finally:
            if self._watch is not None:
                self._watch.close()

    def to_json(self) -> dict[str, Any]:
        """The parts `plan`, `server`, `traffic` and `devices` of the report."""
        return {
            "plan": self.plan.to_json(),
            "server": self._server_json,
            "traffic": self._seen("traffic", Traffic.to_json),
            "devices": self._devices_json(),
        }

    def _devices_json(self) -> dict[str, Any] | None:
        """What was seen of the devices before the launch, at rest, under load and after the stop;
        None when nobody looked.
        """
        parts = {
            "before": self._seen("host", lambda host: host.devices.to_json()) or None,
            "at_rest": self._at_rest.to_json() if self._at_rest else None,
            "under_load": self._seen("traffic", lambda traffic: traffic.devices.to_json()),
            "after": self._seen("stopped", lambda stopped: stopped.devices.to_json()) or None,
        }
        return parts if any(parts.values()) else None

    def _seen(self, name: str, write: Callable[[Any], Any]) -> Any:
        """A part of the pipeline as the report has it, if it was made."""
        return write(self.__dict__[name]) if name in self.__dict__ else None

    @property
    def _is_on_gpus(self) -> bool:
        """Whether the devices are GPUs of this machine."""
        is_here = self.url is None or is_loopback(self.url)
        if self.spec.attach and self.spec.attach.probes:
            is_here = False
        return is_here and self.spec.hardware.device.platform == "cuda"

    def _start(self) -> Server:
        from pytest_llmdeploy.serving.introspection import introspect  # noqa: PLC0415 - if live
        from pytest_llmdeploy.serving.start import attach, launch  # noqa: PLC0415 - if live

        self._sweep_abandoned()
        if self._is_on_gpus:
            self._prepare()
        try:
            if self.url is not None:
                server = attach(self.spec, self.url, self.progress)
            else:
                server, self._process = launch(
                    self.spec, self.log, self.progress, introspect=self.introspect
                )
        except ServerFailedError as failure:
            self._failure = failure
            raise
        if self._watch is not None:
            server = replace(server, read_xids=self._watch.read)
        if self.introspect:
            asked = introspect(server.endpoint, self.spec.parallel.devices)
            server = replace(server, introspection=asked)
        self.seconds["server start"] = server.stages.get("first completion", 0.0)
        # Later, the server may not be there to be asked.
        self._server_json, self._at_rest = server.to_json(), server.devices
        return server

    def _sweep_abandoned(self) -> None:
        """Ends what an earlier run left when it was killed: devices are looked at, and given to a
        server, without it.
        """
        from pytest_llmdeploy.serving.launches import sweep_abandoned  # noqa: PLC0415 - if live

        if self.url is None:
            # Who can't look is told by the launch.
            with suppress(LaunchError, OSError):
                if swept := "; ".join(map(str, sweep_abandoned())):
                    self.progress(f"server   {swept}")

    def _prepare(self) -> None:
        """What can only be had before the launch: the baseline, and the first XIDs."""
        from pytest_llmdeploy.probes.watch import XidWatch  # noqa: PLC0415 - only for GPUs

        self._watch = XidWatch(self.host.devices.first(self.spec.parallel.devices))

    def _returned(self) -> Devices:
        """The devices once what the server held is back, or it took too long."""
        deadline = time.monotonic() + _RETURN_SECONDS
        while True:
            devices = read_used_gpus(self.spec)
            found = returned(self.host.devices, devices, self.spec.parallel.devices)
            if found.status is not Status.FAIL or time.monotonic() > deadline:
                return devices
            time.sleep(_LOOK_SECONDS)
