"""A server that runs elsewhere: where to ask for it, its replicas and its devices."""

from __future__ import annotations

import re
import sys
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pytest_llmdeploy.spec.errors import FaultError
from pytest_llmdeploy.spec.record import Record

_POD_NAME = re.compile(r"[a-z0-9.-]+\*?")


class Probes(Record):
    """Who tells of the devices: the URL of a dcgm-exporter, and of its page the rows of the pods
    that serve (`namespace` and `pod`, which may end in * for a set of pods).
    """

    dcgm: str
    """The URL of a dcgm-exporter that tells of the devices."""
    namespace: str | None = None
    """The namespace of the pods whose devices these are."""
    pod: str | None = None
    """The name of the pods whose devices these are; may end in `*`."""

    @field_validator("dcgm")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("namespace", "pod")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not _POD_NAME.fullmatch(name):
            msg = f"found {name!r}: write a name, or how names begin (vllm-*)"
            raise ValueError(msg)
        return name

    @property
    def is_for_pods(self) -> bool:
        """Whether the devices are those of some pods; else they are all that the exporter has."""
        return bool(self.namespace or self.pod)

    def covers(self, pod: str) -> bool:
        """Whether a pod ("namespace/pod") is one of those that serve."""
        namespace, _, name = pod.partition("/")
        return _fits(namespace, self.namespace) and _fits(name, self.pod)


class Attach(Record):
    """The server to attach to, instead of launching one.

    `engines` are the URLs of its replicas, or one name that resolves to the addresses of all
    ("http://vllm-headless:8000"); without them what `url` answers is all there is. Another machine
    is put under load only with `load`; a run sends no more than `max_requests`, and has no more
    than `max_concurrency` of them in flight.
    """

    url: str
    """Where requests are sent to."""
    engines: tuple[str, ...] = Field(default=(), strict=False)
    """The URLs of all replicas, or one name that resolves to the addresses of all."""
    probes: Probes | None = None
    """Who tells of the devices."""
    load: bool = False
    """Whether another machine than this one may be put under load."""
    max_requests: int = Field(default=10_000, ge=1)
    """No more are sent in a run."""
    max_concurrency: int = Field(default=256, ge=1)
    """No more are in flight at once."""

    @model_validator(mode="after")
    def _has_urls(self) -> Self:
        for key, url in [(("url",), self.url), *_numbered("engines", self.engines)]:
            try:
                checked_url(url)
            except ValueError as error:
                raise FaultError(key, str(error)) from None
        return self

    @classmethod
    def instead(cls, declared: Attach | None, url: str) -> Attach:
        """The server at `url` instead of the declared one. Whoever tells of that says nothing of
        this one, but no more load is allowed; no field is set by the spec.
        """
        endless = {"max_requests": sys.maxsize, "max_concurrency": sys.maxsize}
        kept = (
            {name: getattr(declared, name) for name in ("load", *endless)} if declared else endless
        )
        return cls.model_construct(set(), url=url, **kept)


def _numbered(key: str, urls: tuple[str, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    return [((key, index), url) for index, url in enumerate(urls)]


def _fits(name: str, wanted: str | None) -> bool:
    if wanted is None:
        return True
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted


def checked_url(url: str) -> str:
    """`url`, which is one.

    Raises:
        ValueError: when it is none, or holds a secret.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if "@" in url:
        msg = "a secret is not written into a URL: VLLM_API_KEY of the environment is sent"
        raise ValueError(msg)
    if not good:
        msg = f"found {url!r}: write a URL (http://host:port)"
        raise ValueError(msg)
    return url
