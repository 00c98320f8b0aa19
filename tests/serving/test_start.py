"""From a spec to a server that serves, or to the reason why there is none."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llmdeploy.probes.endpoint import EndpointError
from pytest_llmdeploy.serving import (
    Command,
    LaunchError,
    Server,
    ServerFailedError,
    readiness,
    start,
)
from pytest_llmdeploy.serving import process as process_module
from pytest_llmdeploy.serving.process import ServerProcess, free_port
from pytest_llmdeploy.spec import Spec
from tests.serving.processes import alive_with, eventually, fake_vllm, python
from tests.standin import Standin

Launch = Callable[..., tuple[Server, ServerProcess]]
# In the command line of each process of these tests, to find them by.
MARK = "--settings="


def spec(**serve: Any) -> Spec:
    return Spec.model_validate(
        {
            "version": 1,
            "model": {"id": "tiny-llama"},
            "hardware": {"device": "cpu"},
            "serve": {"startup_timeout": "10s", **serve},
        }
    )


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Launches a command in vLLM's place; `said` are the lines of progress."""
    monkeypatch.setattr(process_module, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(readiness, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(readiness, "_DYING_SECONDS", 0.5)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    launched: list[ServerProcess] = []

    def launch(
        command: Callable[[int], Command], said: list[str] | None = None, **serve: Any
    ) -> tuple[Server, ServerProcess]:
        monkeypatch.setattr(start, "launch_command", lambda _spec, port: command(port))
        progress = (said if said is not None else []).append
        server, process = start.launch(spec(**serve), tmp_path / "server.log", progress)
        launched.append(process)
        return server, process

    yield launch
    for process in launched:
        process.stop()


def refused(launch: Launch, command: Callable[[int], Command], **serve: Any) -> list[str]:
    """The lines of the failure; nothing of the server is left by then."""
    pids: list[int] = []

    def noted(port: int) -> Command:
        pids.append(port)
        return command(port)

    with pytest.raises(ServerFailedError) as caught:
        launch(noted, **serve)
    assert alive_with(f"--port={pids[0]}") == []
    return str(caught.value).splitlines()


def test_a_server_becomes_ready(launch: Launch) -> None:
    """Ready means that it has answered a completion; each stage has its seconds."""
    said: list[str] = []
    server, process = launch(lambda port: fake_vllm(port, '{"ttft_ms": 200}'), said)
    assert list(server.stages) == ["process", "port", "healthy", "models", "first completion"]
    assert list(server.stages.values()) == sorted(server.stages.values())
    assert 0 < server.stages["process"] < server.stages["port"]
    assert server.stages["healthy"] <= server.stages["first completion"] - 0.2
    assert server.time_to_first_token.value == server.stages["first completion"] * 1000
    assert (server.version, server.max_model_len, server.pid) == ("0.32.0", 512, process.pid)
    assert server.parallel_facts() == {"tp": 2, "pp": 1, "dp": 1}
    assert server.cache["kv_cache_size_tokens"] == "524288"
    assert server.death == ""
    told = [" ".join(line.split()[1:4]) for line in said]
    assert list(dict.fromkeys(told)) == [
        f"process after {server.stages['process']:.1f}",
        "waiting for its",
        f"port after {server.stages['port']:.1f}",
        f"healthy after {server.stages['healthy']:.1f}",
        f"models after {server.stages['models']:.1f}",
        "first completion after",
    ]
    process.stop()
    assert alive_with(f"--port={server.url.rpartition(':')[2]}") == []


def test_a_server_that_dies_later_says_so(launch: Launch) -> None:
    """Death is looked up anew each time, with its cause."""
    server, process = launch(fake_vllm)
    process.tree()[0].kill()
    eventually(lambda: bool(server.death))
    assert server.death.startswith("the server died: the server was ended by SIGKILL")
    # A device that nothing is on any more is no measurement.
    assert server.devices.problem == f"error: {server.death}"


def test_a_server_that_ends_well_has_died_too(launch: Launch) -> None:
    """A vLLM whose engine crashed exits with 0."""
    settings = json.dumps({"faults": [{"kind": "die", "after": 1}]})
    server, _ = launch(lambda port: fake_vllm(port, settings))
    with pytest.raises(EndpointError):
        server.endpoint.complete("tiny-llama", [1], 4, timeout=5)
    eventually(lambda: bool(server.death))
    assert server.death == "the server died: the server ended with exit code 0"


@pytest.mark.parametrize("place", ["spec", "here"])
def test_the_key_of_the_server_is_ours(
    launch: Launch, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes its key from its environment, which may be the one that it inherits."""
    added = {"VLLM_API_KEY": "s3cret"} if place == "spec" else {}
    if place == "here":
        monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    server, _ = launch(lambda port: fake_vllm(port, **added))
    assert server.model["id"] == "tiny-llama"


def test_another_model_is_still_a_server(launch: Launch) -> None:
    """What it serves instead is for a check to judge, and in the record."""
    server, _ = launch(lambda port: fake_vllm(port, json.dumps({"model": "other"})))
    assert server.model["id"] == "other"


def test_a_server_that_exits_at_once(launch: Launch, tmp_path: Path) -> None:
    """The first line says why, and the last where everything is."""
    lines = refused(
        launch,
        lambda port: python(
            "raise ValueError('No available memory for the cache blocks')", f"--port={port}"
        ),
    )
    assert lines[0] == "the server did not become ready: no memory is left for the KV cache"
    assert lines[1] == "log: ValueError: No available memory for the cache blocks"
    assert lines[2].startswith("hint: raise serve.gpu_memory_utilization")
    assert lines[-2].startswith(f"command: {sys.executable} -c ")
    assert lines[-1] == f"whole log: {tmp_path / 'server.log'}"


def test_an_exit_code_of_0_is_no_start(launch: Launch) -> None:
    """A server that ends well has not started either."""
    lines = refused(launch, lambda port: python("print('bye')", f"--port={port}"))
    assert lines[0] == "the server did not become ready: the server ended with exit code 0"


def test_a_server_that_writes_a_log(launch: Launch) -> None:
    """While it starts, its last line is shown with what is waited for."""
    said: list[str] = []
    script = "print('Loading weights', flush=True); import time; time.sleep(60)"
    with pytest.raises(ServerFailedError):
        launch(lambda port: python(script, f"--port={port}"), said, startup_timeout="500ms")
    assert re.fullmatch(r"server   waiting for its port, \d s   Loading weights", said[-1])


FATAL = """
print("(EngineCore pid=7) ERROR 11-23 03:38:07 [core.py:9] ValueError: No available memory for "
      "the cache blocks.", flush=True)
import time; time.sleep(60)
"""


def test_a_start_that_is_lost(launch: Launch) -> None:
    """The log says so, and nobody waits for a server that does not end by itself."""
    began = time.monotonic()
    lines = refused(launch, lambda port: python(FATAL, f"--port={port}"), startup_timeout="5min")
    assert time.monotonic() - began < 6
    assert lines[0] == "the server did not become ready: no memory is left for the KV cache"


# Ports


def on_a_taken_port(
    times: int, command: Callable[[int], Command], held: list[socket.socket]
) -> Callable[[int], Command]:
    """A command whose port somebody else gets first, the first so many times."""

    def taken(port: int) -> Command:
        if len(held) < times:
            held.append(socket.create_server(("127.0.0.1", port)))
            return python("import time; time.sleep(60)", f"--port={port}")
        return command(port)

    return taken


@pytest.fixture
def held() -> Iterator[list[socket.socket]]:
    """The ports that somebody else has."""
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


def test_another_port_is_tried(launch: Launch, held: list[socket.socket]) -> None:
    """Who has the port is told; the server that becomes ready is ours, and none is left beside."""
    said: list[str] = []
    server, process = launch(on_a_taken_port(2, fake_vllm, held), said)
    ports = [each.getsockname()[1] for each in held]
    me = psutil.Process()
    told = [line for line in said if line.startswith("server   trying another port: ")]
    for port, line in zip(ports, told, strict=True):
        assert line.endswith(f"{port} is held by {me.name()} (pid {me.pid}), not by our server")
        assert alive_with(f"--port={port}") == []
    assert start._listener(server.endpoint) in {each.pid for each in process.tree()}


def test_a_port_that_is_always_taken(launch: Launch, held: list[socket.socket]) -> None:
    """After three more, it is given up: nobody is attached to, whoever answers there."""
    with pytest.raises(ServerFailedError, match=r"port \d+ is held by .*, not by our server"):
        launch(on_a_taken_port(99, fake_vllm, held))
    assert len(held) == 4


def test_a_server_that_could_not_bind(launch: Launch) -> None:
    """Whoever had its port may be gone again; its log says that somebody had."""
    ports: list[int] = []

    def command(port: int) -> Command:
        ports.append(port)
        script = "raise OSError(98, 'Address already in use')"
        return fake_vllm(port) if len(ports) == 2 else python(script, f"--port={port}")

    server, _ = launch(command)
    assert server.url.endswith(f":{ports[1]}")


# Hangs


@pytest.mark.parametrize("kind", ["silent", "stalled_stream"])
def test_a_first_completion_that_never_comes(
    launch: Launch, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is a hang, and what to look at is said."""
    monkeypatch.setattr(readiness, "_COMPLETION_SECONDS", 0.5)
    settings = json.dumps({"faults": [{"kind": kind}]})
    lines = refused(launch, lambda port: fake_vllm(port, settings))
    assert lines[0] == (
        "the server did not become ready: "
        "the server hangs: no token for 0.5 s while /health answers 200"
    )
    assert any(line.startswith("hint: see which of its processes") for line in lines)


def test_a_stopped_server_is_named(launch: Launch) -> None:
    """A process that is stopped makes no progress, and is ended all the same."""
    script = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    lines = refused(launch, lambda port: python(script, f"--port={port}"), startup_timeout="500ms")
    assert re.fullmatch(r"it: python\S* \(pid \d+\) is stopped", lines[1])


def test_a_server_that_hangs(launch: Launch) -> None:
    """The start is given up after its time, and the process is ended."""
    began = time.monotonic()
    lines = refused(
        launch,
        lambda port: python("import time; time.sleep(60)", f"--port={port}"),
        startup_timeout="500ms",
    )
    assert time.monotonic() - began < 12
    assert lines[0].startswith("the server did not become ready: no answer at http://127.0.0.1:")
    assert lines[0].endswith("/health within 0.5 s")
    assert "hint: raise serve.startup_timeout, or see in the log what it waits for" in lines


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("http_500", "the test completion answers HTTP 500"),
        ("sse_error", "the test completion failed: {'message': 'EngineCore encountered"),
        ("wrong_count", "the test completion has 3 tokens instead of 4"),
        (
            "die",
            "the server ended with exit code 0\nit: the test completion failed: Response ended",
        ),
    ],
)
def test_healthy_and_unable_to_serve(launch: Launch, kind: str, text: str) -> None:
    """/health says 200 and the first completion fails: that is no server."""
    settings = json.dumps({"faults": [{"kind": kind}]})
    lines = refused(launch, lambda port: fake_vllm(port, settings))
    assert "\n".join(lines).startswith(f"the server did not become ready: {text}")


def test_an_interrupt_leaves_nothing(launch: Launch) -> None:
    """Whoever breaks off a start, with Ctrl-C for instance, does not leave a server behind."""
    port = free_port()

    class Impatient(list[str]):
        def append(self, line: str) -> None:
            if "healthy" in line:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(lambda _port: fake_vllm(_port, json.dumps({"seed": port})), Impatient())
    assert alive_with(f'"seed": {port}') == []


def test_what_can_not_be_launched(launch: Launch) -> None:
    """The reason arrives as that of a server that failed."""

    def command(_port: int) -> Command:
        raise LaunchError("vLLM is not installed")

    with pytest.raises(ServerFailedError, match="vLLM is not installed"):
        launch(command)
    with pytest.raises(ServerFailedError, match="No such file"):
        launch(lambda _port: Command(("/nonexistent",), {}))


def test_attach() -> None:
    """To a server that somebody else started, by any form of its address."""
    with Standin() as standin:
        for suffix in ("", "/", "/v1", "/v1/"):
            server = start.attach(spec(), standin.url + suffix, lambda _text: None)
            assert (server.url, server.pid, server.command) == (standin.url, None, "")
        assert server.time_to_first_token.problem.startswith("unsupported: ")
        assert start._listener(server.endpoint) == standin.pid


def test_attach_to_a_busy_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be there at once, and may take its time for a completion."""
    monkeypatch.setattr(start, "_ATTACH_SECONDS", 0.2)
    monkeypatch.setattr(readiness, "_LEAST_COMPLETION_SECONDS", 0.2)
    with Standin(ttft_ms=700) as standin:
        assert (
            start.attach(spec(), standin.url, lambda _text: None).stages["first completion"] > 0.7
        )


def test_attach_to_a_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there: said in time, with the address and what to look at."""
    monkeypatch.setattr(start, "_ATTACH_SECONDS", 0.3)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerFailedError) as caught:
        start.attach(spec(), url, lambda _text: None)
    assert str(caught.value).splitlines() == [
        f"no answer at {url}/health within 0.3 s",
        "hint: check --deploy-url, and that the server is up",
    ]
