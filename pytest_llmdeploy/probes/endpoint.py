"""The HTTP endpoints of a vLLM server, each read with bounds on time and size."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from urllib3.exceptions import ReadTimeoutError

from pytest_llmdeploy.probes.host import is_loopback
from pytest_llmdeploy.probes.metrics import Metrics

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_MOST_BYTES = 16 * 1024**2
_MOST_STREAMED_BYTES = 1024**2
_PART_BYTES = 64 * 1024


class EndpointError(Exception):
    """The server did not answer as a vLLM does; the text says what it did."""


class EndpointTimeoutError(EndpointError):
    """The server did not answer in time."""


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
        """Whether /health answers 200; a vLLM that does may still be unable to serve."""
        try:
            status, _ = self._get("/health")
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
            EndpointError: when anything but that comes back.
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
            with self._session() as session:
                response = session.post(
                    f"{self.url}/v1/completions",
                    json=body,
                    stream=True,
                    timeout=(_CONNECT_SECONDS, timeout),
                    allow_redirects=False,
                )
                return _completion(response, tokens, started, timeout)
        except requests.RequestException as error:
            msg = f"the test completion failed: {_reason(error)}"
            raise EndpointError(msg) from None

    def _json(self, path: str) -> Mapping[str, Any]:
        try:
            data = json.loads(self._ok(path))
        except (ValueError, RecursionError):
            msg = f"{self.url}{path} is not JSON"
            raise EndpointError(msg) from None
        if not isinstance(data, dict):
            msg = f"{self.url}{path} is not a JSON object"
            raise EndpointError(msg)
        return data

    def _ok(self, path: str) -> bytes:
        status, body = self._get(path)
        if status != requests.codes.ok:
            msg = f"{self.url}{path} answers HTTP {status}"
            raise EndpointError(msg)
        return body

    def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        seconds = self.seconds or _ANSWER_SECONDS
        try:
            with self._session() as session:
                response = session.get(
                    self.url + path,
                    stream=True,
                    timeout=(min(_CONNECT_SECONDS, seconds), seconds),
                    allow_redirects=False,
                )
                return response.status_code, b"".join(_parts(response, seconds))
        except requests.RequestException as error:
            msg = f"{self.url}{path} does not answer: {_reason(error)}"
            kind = EndpointTimeoutError if _is_timeout(error) else EndpointError
            raise kind(msg) from None

    def _session(self) -> requests.Session:
        session = requests.Session()
        # A proxy for the world must not see what goes to this machine.
        session.trust_env = not self.is_loopback
        session.headers.update(self.headers)
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
        text = b"".join(_parts(response, seconds))[:2000].decode("utf-8", "replace")
        msg = f"the test completion answers HTTP {response.status_code}: {text.strip()}"
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
            msg = f"the test completion failed: {event['error']}"
            raise EndpointError(msg)
        fingerprint = event.get("system_fingerprint") or fingerprint
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
    if counted != tokens:
        msg = f"the test completion has {counted} tokens instead of {tokens}"
        raise EndpointError(msg)
    return Completion(first, fingerprint)


def _lines(response: requests.Response, seconds: float) -> Iterator[bytes]:
    rest = b""
    for part in _parts(response, seconds, _MOST_STREAMED_BYTES):
        *whole, rest = (rest + part).split(b"\n")
        yield from whole
    yield rest


def _parts(response: requests.Response, seconds: float, most: int = _MOST_BYTES) -> Iterator[bytes]:
    """The body as it comes, within the bounds on time and size that requests does not have."""
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


def _is_timeout(error: requests.RequestException) -> bool:
    # While the body comes, requests calls it an error of the connection.
    inner = error.args[0] if error.args else None
    return isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError)


def _reason(error: BaseException) -> str:
    """The innermost reason of a nest of network exceptions."""
    inner = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None)
    if isinstance(reason, BaseException):
        return _reason(reason)
    return str(inner).rpartition("object at")[2].partition(": ")[2] or str(inner)
