"""The way of a server to its first token, stage by stage, and when there is no way any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import urlsplit

from pytest_llmdeploy.probes.endpoint import (
    Completion,
    Endpoint,
    EndpointError,
    EndpointTimeoutError,
)
from pytest_llmdeploy.serving.diagnosis import diagnose, is_hopeless, known_causes
from pytest_llmdeploy.serving.hang import stopped_processes
from pytest_llmdeploy.serving.listening import is_open, listeners, named
from pytest_llmdeploy.serving.process import ServerProcess
from pytest_llmdeploy.serving.server import ServerFailedError

Progress = Callable[[str], None]
_T = TypeVar("_T")

# What is waited for on the way to a stage.
_AWAITED = {"port": "its port", "healthy": "/health", "first completion": "its first token"}
_POLL_SECONDS = 0.2
# A server that is lost writes why, and ends; what it writes last may say the most.
_DYING_SECONDS = 3.0
_LOG_BYTES = 64 * 1024
_PROBE_TOKENS = 4
_PROBE_PROMPT = [11, 12, 13, 14]
_COMPLETION_SECONDS = 60.0
_LEAST_COMPLETION_SECONDS = 5.0
_LATE = "raise serve.startup_timeout, or see in the log what it waits for"


class PortTakenError(ServerFailedError):
    """Somebody else had the port first: on another one, the server may start."""


@dataclass
class Readiness:
    """`stages` are the seconds since the launch at which each was reached. By `deadline` it must be
    healthy, and answer its first completion if it was launched; `seconds` is what was allowed until
    then. Without a `process`, nothing was launched, and `blame` is where the address came from.
    """

    endpoint: Endpoint
    progress: Progress
    seconds: float
    deadline: float
    process: ServerProcess | None = None
    blame: str = ""
    began: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)
    _log: str = field(default="", init=False)

    def wait_for_health(self) -> None:
        """Waits until /health answers 200, on a port that is the server's own.

        Raises:
            ServerFailedError: as soon as it is known that it never will.
        """
        if self.process is not None:
            self.reach("process")
            self._until("port", self._has_port)
        self._until("healthy", lambda: self.ask(self.endpoint.is_healthy))

    def first_completion(self, model: str) -> Completion:
        """A real one: a vLLM may be healthy and unable to serve.

        Raises:
            ServerFailedError: when it fails, or does not come.
        """
        stage = "first completion"
        self._tell(stage)
        patience = _COMPLETION_SECONDS
        # A server that was there may be busy; one of ours has so long as its start may take.
        if self.process is not None:
            left = max(self.deadline - time.monotonic(), _LEAST_COMPLETION_SECONDS)
            patience = min(patience, left)
        try:
            found = self.endpoint.complete(model, _PROBE_PROMPT, _PROBE_TOKENS, timeout=patience)
        except EndpointTimeoutError as error:
            if not self.endpoint.is_healthy():
                raise self.failed(str(error)) from None
            what = f"the server hangs: no token for {patience:.3g} s while /health answers 200"
            raise self.failed(what, known_causes()["hang"].hint) from None
        except EndpointError as error:
            self._let_die()
            raise self.failed(str(error)) from None
        self.reach(stage)
        return found

    def ask(self, question: Callable[[], _T]) -> _T:
        """What the server answers.

        Raises:
            ServerFailedError: when it does not, or not as a vLLM does.
        """
        try:
            return question()
        except EndpointError as error:
            self._let_die()
            raise self.failed(str(error)) from None

    def reach(self, stage: str) -> None:
        self.stages[stage] = time.monotonic() - self.began
        self.progress(f"server   {stage} after {self.stages[stage]:.1f} s")

    def failed(self, what: str = "", hint: str = "") -> ServerFailedError:
        """The failure to become ready: why, the log's decisive line, what to change. `what` was
        seen from outside; the log may know better.
        """
        if self.process is None:
            hint = hint or f"check {self.blame}, and that the server is up"
            return ServerFailedError(f"{what}\nhint: {hint}")
        code = self.process.returncode
        found = diagnose(self.process.log_text(), code)
        if what and code is None and not found.name:
            found = replace(found, cause=what, hint=hint or found.hint)
        lines = [f"the server did not become ready: {found.cause}"]
        lines += [f"it: {what}"] if what and found.cause != what else []
        lines += [f"it: {stopped}"] if (stopped := stopped_processes(self._pids())) else []
        lines += [f"log: {found.line}"] if found.line else []
        lines += [f"hint: {found.hint}"] if found.hint else []
        lines += [f"command: {self.process.command}", f"whole log: {self.process.log}"]
        kind = PortTakenError if found.name == "port" else ServerFailedError
        return kind("\n".join(lines))

    def _until(self, stage: str, is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            self._give_up_if_lost()
            self._tell(stage)
            time.sleep(_POLL_SECONDS)
        self.reach(stage)

    def _tell(self, stage: str) -> None:
        seconds = time.monotonic() - self.began
        last = self.process.last_line() if self.process else self.endpoint.url
        self.progress(f"server   waiting for {_AWAITED[stage]}, {seconds:.0f} s   {last}")

    def _give_up_if_lost(self) -> None:
        if self.process is not None:
            if self.process.returncode is not None:
                raise self.failed()
            if self._is_hopeless(self.process):
                self._let_die()
                raise self.failed()
        if time.monotonic() > self.deadline:
            what = f"no answer at {self.endpoint.url}/health within {self.seconds:g} s"
            raise self.failed(what, _LATE if self.process else "")

    def _is_hopeless(self, process: ServerProcess) -> bool:
        before, self._log = self._log, process.log_text(_LOG_BYTES)
        return self._log != before and is_hopeless(self._log)

    def _let_die(self) -> None:
        deadline = time.monotonic() + _DYING_SECONDS
        while self.process and self.process.returncode is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _has_port(self) -> bool:
        """Whether the server's own processes, and nobody else, listen on its port.

        Raises:
            PortTakenError: when somebody else does.
        """
        port = urlsplit(self.endpoint.url).port or 0
        if not is_open(port):
            return False
        found = listeners(port)
        others = found - self._pids()
        if others:
            who = " and ".join(sorted(map(named, others)))
            hint = "hint: run it again; where it stays so, end that process"
            raise PortTakenError(f"port {port} is held by {who}, not by our server\n{hint}")
        return bool(found)

    def _pids(self) -> set[int]:
        return {process.pid for process in self.process.tree()} if self.process else set()
