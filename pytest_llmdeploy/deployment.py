"""One deployment of one spec: plan, host, server, traffic, end; each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmdeploy.load import Traffic
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.probes import Host, read_host
from pytest_llmdeploy.serving import Server, ServerFailedError, Stopped
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.load.runner import Target
    from pytest_llmdeploy.serving.process import ServerProcess


class RefusedError(Exception):
    """What was asked for is not done; the text says why."""


@dataclass
class Deployment:
    """`url` attaches instead of launching; `log` is where a launched server writes."""

    spec: Spec
    log: Path
    url: str | None = None
    progress: Callable[[str], None] = lambda _text: None
    _process: ServerProcess | None = field(default=None, init=False)
    _server: Server | None = field(default=None, init=False)
    _failure: ServerFailedError | None = field(default=None, init=False)
    _server_json: dict[str, Any] | None = field(default=None, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    @cached_property
    def plan(self) -> Plan:
        return plan(self.spec)

    @cached_property
    def host(self) -> Host:
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
        """What came back of all workloads of the spec."""
        from pytest_llmdeploy.load.runner import run_workloads  # noqa: PLC0415 - if live

        result = run_workloads(self.spec, self.target())
        self.seconds["traffic"] = result.seconds
        return result

    def target(self) -> Target:
        """The server as what is put under load.

        Raises:
            RefusedError, ServerFailedError: as `server`.
        """
        from pytest_llmdeploy.load.runner import Target  # noqa: PLC0415 - if live

        server, shape = self.server, self.plan.shape
        return Target(
            endpoint=server.endpoint,
            model=str(server.model.get("id")),
            death=server.read_death if server.pid else None,
            progress=lambda text: self.progress(f"traffic  {text}"),
            **({"vocab": shape.vocab} if shape else {}),
        )

    @property
    def stopped(self) -> Stopped:
        """The end: a launched server is stopped, and what is left of it is looked for.

        Raises:
            RefusedError: when there is nothing to stop, for nothing was launched.
        """
        _ = self.server
        if self._process is None:
            raise RefusedError("this run did not launch the server, and does not stop it")
        return self._process.stop()

    def close(self) -> None:
        """Stops what was launched; harmless when nothing was, or when it is stopped already."""
        if self._process is not None:
            self._process.stop()

    def to_json(self) -> dict[str, Any]:
        """The parts `plan`, `server` and `traffic` of the report."""
        return {
            "plan": self.plan.to_json(),
            "server": self._server_json,
            "traffic": self.__dict__["traffic"].to_json() if "traffic" in self.__dict__ else None,
        }

    def _start(self) -> Server:
        from pytest_llmdeploy.serving.start import attach, launch  # noqa: PLC0415 - if live

        try:
            if self.url is not None:
                server = attach(self.spec, self.url, self.progress)
            else:
                server, self._process = launch(self.spec, self.log, self.progress)
        except ServerFailedError as failure:
            self._failure = failure
            raise
        self.seconds["server start"] = server.stages.get("first completion", 0.0)
        # Later, the server may not be there to be asked.
        self._server_json = server.to_json()
        return server
