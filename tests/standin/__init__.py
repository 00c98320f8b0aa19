"""A stand-in for vLLM's OpenAI server: scripted, hostile on demand, in a process of its own."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .settings import Fault, Settings

__all__ = ["Fault", "Reply", "Settings", "Standin"]

START_SECONDS = 20.0
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer."""

    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        """Return the body parsed."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Return the parsed server-sent events; the closing [DONE] stays a string."""
        lines = [line for line in self.body.decode().splitlines() if line]
        payloads = [line.removeprefix("data: ") for line in lines]
        return [text if text == "[DONE]" else json.loads(text) for text in payloads]


class Standin:
    """Runs the server from `with` to its end; the keywords are the knobs of Settings.

    with Standin(ttft_ms=20, max_num_seqs=4) as standin:
        standin.configure(faults=[Fault("reset", fraction=0.1, after=5)])
        run_the_client(standin.url)
        assert len(standin.requests()) == 100
    """

    def __init__(self, **knobs: Any) -> None:
        self.settings = Settings().updated(knobs)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="standin-")))
            self._process = undo.enter_context(_process(folder, self.settings))
            self._port = _wait_for_port(self._process, folder)
            self._cleanup = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        """The base address, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the server as the out-of-memory killer would."""
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Return the exit code of a server that ends by itself."""
        return self._process.wait(timeout)

    def configure(self, **knobs: Any) -> None:
        """Turn knobs from now on; counting for `after`, `fraction` and routing starts anew."""
        plain = json.dumps(knobs, default=_as_mapping)
        reply = self.call("POST", "/_standin/settings", plain.encode())
        if reply.status != 200:
            raise ValueError(reply.body.decode())

    def reset(self) -> None:
        """Go back to the first settings, with counters at zero and no request remembered."""
        self.call("POST", "/_standin/reset")

    def requests(self) -> list[dict[str, Any]]:
        """Return the completion requests in order of arrival: path, headers, body and more."""
        received: list[dict[str, Any]] = self.call("GET", "/_standin/requests").json()
        return received

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Reply:
        """Send one request (an object becomes JSON) and read the whole answer."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        with contextlib.closing(connection):
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, raw, sent)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())


def _as_mapping(value: object) -> dict[str, Any]:
    if isinstance(value, Fault):
        return {name: getattr(value, name) for name in Fault.__slots__}
    msg = f"no JSON for {value!r}"
    raise TypeError(msg)


@contextlib.contextmanager
def _process(folder: Path, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    package = __name__
    (folder / "settings.json").write_text(settings.to_json())
    command = [sys.executable, "-m", package, "--port-file", str(folder / "port")]
    process = subprocess.Popen(
        [*command, "--settings", str(folder / "settings.json")],
        cwd=Path(__file__).resolve().parents[len(package.split("."))],
        stdin=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], folder: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while not (folder / "port").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            msg = f"the stand-in does not listen (exit code {process.returncode})"
            raise RuntimeError(msg)
        time.sleep(0.01)
    return int((folder / "port").read_text())
