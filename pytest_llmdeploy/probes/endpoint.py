"""The HTTP endpoints of a vLLM server, each read with bounds on time and size."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import requests
from urllib3.exceptions import ReadTimeoutError

from pytest_llmdeploy.probes.host import is_loopback
from pytest_llmdeploy.probes.metrics import Metrics
from pytest_llmdeploy.probes.trust import authorities

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_MOST_BYTES = 16 * 1024**2
_MOST_STREAMED_BYTES = 1024**2
_PART_BYTES = 64 * 1024
_MOST_SHOWN = 500


class _Session(requests.Session):
    """Trusts whom `verify` names, and nobody else whom the environment does."""

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, _: Any, cert: Any
    ) -> Any:
        return super().merge_environment_settings(url, proxies, stream, self.verify, cert)


class EndpointError(Exception):
    """The server did not answer as a vLLM does; the text says what it did."""


class EndpointTimeoutError(EndpointError):
    """The server did not answer in time."""


class EndpointTrustError(EndpointError):
    """The server may be anybody: its certificate is not trusted."""


@dataclass(frozen=True)
class Endpoint:
    """A vLLM server by its base URL (without /v1). `host` is its name where `url` has its address;
    `metrics_path` is for who says its metrics elsewhere, `seconds` for who must answer sooner.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    host: str = ""
    metrics_path: str = "/metrics"
    seconds: float | None = None

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.url)

    @property
    def headers(self) -> Mapping[str, str]:
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {**key, "Host": self.host} if self.host else key

    def is_healthy(self) -> bool:
        """Whether /health answers 200; a vLLM that does may still be unable to serve.

        Raises:
            EndpointTrustError: when it would be so for ever.
        """
        try:
            status, _ = self._ask("/health")
        except EndpointTrustError:
            raise
        except EndpointError:
            return False
        return bool(status == requests.codes.ok)

    def version(self) -> str:
        return str(self._json("/version").get("version", ""))

    def models(self) -> list[Mapping[str, Any]]:
        """What /v1/models lists."""
        data = self._json("/v1/models").get("data")
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            msg = f"{self.url}/v1/models does not list models"
            raise EndpointError(msg)
        return data

    def server_info(self) -> Mapping[str, Any]:
        """The configuration at /server_info, which a server has with VLLM_SERVER_DEV_MODE=1."""
        config = self._json("/server_info?config_format=json").get("vllm_config")
        if not isinstance(config, dict):
            msg = f"{self.url}/server_info has no configuration in JSON"
            raise EndpointError(msg)
        return config

    def world_size(self) -> int:
        """Ranks of all its copies, as /get_world_size counts them; as `server_info`."""
        size = self._json("/get_world_size").get("world_size")
        if not isinstance(size, int):
            msg = f"{self.url}/get_world_size has no number"
            raise EndpointError(msg)
        return size

    def call_workers(self, method: str, seconds: float) -> list[Any]:
        """What each worker answers to a call of one of its methods; as `server_info`.

        Raises:
            EndpointError: when one fails. From then on, vLLM takes answers for those to other
                calls: do not call again.
        """
        data = self._json("/collective_rpc", {"method": method, "timeout": seconds}, seconds + 5)
        found = data.get("results")
        if not isinstance(found, list):
            msg = f"{self.url}/collective_rpc has no results"
            raise EndpointError(msg)
        return found

    def metrics_page(self) -> bytes:
        """What /metrics says, as it says it."""
        return self._ok(self.metrics_path)

    def metrics(self) -> Metrics:
        return self.metrics_on(self.metrics_page())

    def metrics_on(self, page: bytes) -> Metrics:
        """What a page of its metrics says."""
        text = page.decode("utf-8", "replace")
        # A figure that is cut off may still be one.
        if text and not text.endswith("\n"):
            msg = f"{self.url}{self.metrics_path} is cut off"
            raise EndpointError(msg)
        try:
            return Metrics.parse(text, time.time())
        except ValueError as error:
            msg = f"{self.url}{self.metrics_path} is not in Prometheus' text format: {error}"
            raise EndpointError(msg) from None

    def complete(self, model: str, prompt: list[int], tokens: int, timeout: float) -> Completion:
        """One real, streamed completion of exactly `tokens` tokens.

        Raises:
            EndpointError: when anything but that comes back, EndpointTimeoutError when nothing does
                for `timeout` seconds.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        try:
            with self._answer("/v1/completions", timeout, json=body) as response:
                return _completion(response, tokens, started, timeout)
        except OSError as error:
            msg = f"the test completion failed: {_reason(error)}"
            raise _kind(error)(msg) from None

    def _json(
        self, path: str, body: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> Mapping[str, Any]:
        try:
            data = json.loads(self._ok(path, body, seconds))
        except (ValueError, RecursionError):
            msg = f"{self.url}{path} is not JSON"
            raise EndpointError(msg) from None
        if not isinstance(data, dict):
            msg = f"{self.url}{path} is not a JSON object"
            raise EndpointError(msg)
        return data

    def _ok(
        self, path: str, body: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> bytes:
        status, answer = self._ask(path, body, seconds)
        if status != requests.codes.ok:
            msg = f"{self.url}{path} answers HTTP {status}"
            raise EndpointError(msg)
        return answer

    def _ask(
        self, path: str, body: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer to GET, or to POST where there is something to send."""
        seconds = seconds or self.seconds or _ANSWER_SECONDS
        try:
            given = {} if body is None else {"json": body}
            with self._answer(path, seconds, **given) as response:
                return response.status_code, b"".join(body_parts(response, seconds))
        except OSError as error:
            msg = f"{self.url}{path} does not answer: {_reason(error)}"
            raise _kind(error)(msg) from None

    @contextmanager
    def _answer(self, path: str, seconds: float, **body: Any) -> Iterator[requests.Response]:
        """The answer to a GET, or with a body to a POST; its head is there."""
        timeout = (min(_CONNECT_SECONDS, seconds), seconds)
        with self.session() as session:
            ask = partial(
                session.request,
                "POST" if body else "GET",
                self.url + path,
                stream=True,
                timeout=timeout,
                allow_redirects=False,
                **body,
            )
            with _in_time(ask, sum(timeout)) as response:
                yield response

    def session(self) -> requests.Session:
        """Where requests to this server, and to no other, are made from."""
        session = _Session()
        # A proxy for the world must not see what goes to this machine.
        session.trust_env = not self.is_loopback
        session.verify = authorities()
        # With an `auth` of its own it leaves ~/.netrc alone, which would replace our key.
        session.auth = lambda request: request
        # What is compressed has no bound on its size.
        session.headers.update({**self.headers, "Accept-Encoding": "identity"})
        return session


@dataclass(frozen=True, slots=True)
class Completion:
    """What the test completion showed: seconds to the first token, and the server's fingerprint."""

    first_token_seconds: float
    fingerprint: str


def _completion(
    response: requests.Response, tokens: int, started: float, seconds: float
) -> Completion:
    if response.status_code != requests.codes.ok:
        text = _shown(b"".join(body_parts(response, seconds)))
        msg = f"the test completion answers HTTP {response.status_code}: {text}"
        raise EndpointError(msg)
    first, fingerprint, counted = 0.0, "", 0
    for line in _lines(response, seconds):
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - started
        try:
            event = json.loads(line[len(b"data: ") :])
        except (ValueError, RecursionError):
            msg = f"the test completion streams what is not JSON: {line[:200]!r}"
            raise EndpointError(msg) from None
        if "error" in event:
            msg = f"the test completion failed: {_shown(str(event['error']))}"
            raise EndpointError(msg)
        fingerprint = str(event.get("system_fingerprint") or fingerprint)
        if isinstance(usage := event.get("usage"), dict):
            counted = usage.get("completion_tokens", counted)
    if counted != tokens:
        msg = f"the test completion has {_shown(str(counted))} tokens instead of {tokens}"
        raise EndpointError(msg)
    return Completion(first, fingerprint)


def _lines(response: requests.Response, seconds: float) -> Iterator[bytes]:
    rest = b""
    for part in body_parts(response, seconds, _MOST_STREAMED_BYTES):
        *whole, rest = (rest + part).split(b"\n")
        yield from whole
    yield rest


def _in_time(ask: Callable[[], requests.Response], seconds: float) -> requests.Response:
    """What `ask` returns, within so many seconds: requests only has a limit on the silence between
    two bytes of the headers.
    """
    heard: SimpleQueue[requests.Response | OSError] = SimpleQueue()
    is_late = Event()

    def listen() -> None:
        try:
            response = ask()
        except OSError as error:
            heard.put(error)
            return
        heard.put(response)
        if is_late.is_set():
            response.close()

    Thread(target=listen, daemon=True).start()
    try:
        found = heard.get(timeout=seconds)
    except Empty:
        is_late.set()
        msg = f"no end of the headers within {seconds:g} s"
        raise TimeoutError(msg) from None
    if isinstance(found, OSError):
        raise found
    return found


def body_parts(
    response: requests.Response, seconds: float, most: int = _MOST_BYTES
) -> Iterator[bytes]:
    """The body as it comes, within the bounds on time and size that requests does not have.

    Raises:
        EndpointError: when it is beyond them, or is compressed, which has none.
    """
    if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
        msg = f"{response.url} answers in {_shown(coding)}, which nobody asked for"
        raise EndpointError(msg)
    deadline, left = time.monotonic() + seconds, most
    for part in response.iter_content(_PART_BYTES):
        left -= len(part)
        if left < 0:
            msg = f"{response.url} answers more than {most:,} bytes"
            raise EndpointError(msg)
        if time.monotonic() > deadline:
            msg = f"{response.url} does not come to an end within {seconds:g} s"
            raise EndpointTimeoutError(msg)
        yield part


def _shown(told: bytes | str) -> str:
    """As much of what a server says as a person reads."""
    text = told if isinstance(told, str) else told[:_MOST_SHOWN].decode("utf-8", "replace")
    return text[:_MOST_SHOWN].strip()


def _kind(error: OSError) -> type[EndpointError]:
    # While the body comes, requests calls it an error of the connection.
    inner = error.args[0] if error.args else None
    if isinstance(error, requests.Timeout | TimeoutError) or isinstance(inner, ReadTimeoutError):
        return EndpointTimeoutError
    is_untrusted = isinstance(_root(error), ssl.SSLCertVerificationError)
    return EndpointTrustError if is_untrusted else EndpointError


def _reason(error: BaseException) -> str:
    """The innermost reason of a nest of network exceptions."""
    inner = _root(error)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({inner.verify_message}): where its authority is "
            "your own, name the file of that in SSL_CERT_FILE"
        )
    return str(inner).rpartition("object at")[2].partition(": ")[2] or str(inner)


def _root(error: BaseException) -> BaseException:
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    return _root(reason) if isinstance(reason, BaseException) else error
