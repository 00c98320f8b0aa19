"""A vLLM server that is ready: what it says of itself, and the devices under it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import Devices
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.probes.endpoint import Endpoint
    from pytest_llmdeploy.probes.metrics import Metrics

_FINGERPRINT = re.compile(r"vllm-(?P<version>[^-]+)-(?P<modes>(?:[a-z]+\d+-)*)[0-9a-f]+")


class ServerFailedError(Exception):
    """The server did not become ready. The first line says why, the others what to do."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a server left behind when it was stopped: its processes, and what is in use of the
    devices once no more comes back.
    """

    processes: Sequence[str]
    seconds: float
    devices: Devices = field(default_factory=lambda: Devices((), "the devices after the stop"))


def unwatched() -> Xids:
    """Of devices that nobody watches."""
    return Xids(problem="unsupported: nobody watches for XIDs here")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, launched or attached to.

    `model` is its entry of /v1/models, `cache` the labels of `vllm:cache_config_info` of its first
    engine (empty when it does not report them), `stages` the seconds of each stage of its start,
    `replicas` the endpoints of every replica behind `endpoint` (none: it is the only one).
    `read_devices`, `read_death`, `read_pids` (its processes, where they can be seen from here) and
    `read_xids` look anew each time; so does `read_changing`, at what changes of the devices from
    one second to the next, where that is less than all.
    """

    spec: Spec
    endpoint: Endpoint
    command: str
    model: Mapping[str, Any]
    version: str
    fingerprint: str
    cache: Mapping[str, str]
    time_to_first_token: Evidence
    read_devices: Callable[[], Devices] = field(repr=False)
    read_death: Callable[[], str] = field(repr=False)
    read_pids: Callable[[], frozenset[int]] = field(default=frozenset, repr=False)
    read_xids: Callable[[], Xids] = field(default=unwatched, repr=False)
    read_changing: Callable[[], Devices] | None = field(default=None, repr=False)
    replicas: Sequence[Endpoint] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    pid: int | None = None

    @property
    def url(self) -> str:
        return self.endpoint.url

    @property
    def max_model_len(self) -> int | None:
        value = self.model.get("max_model_len")
        return value if isinstance(value, int) else None

    @property
    def devices(self) -> Devices:
        """The devices that serve, as they are now."""
        return self.read_devices()

    @property
    def death(self) -> str:
        """Why the server is no longer there; empty while it is."""
        return self.read_death()

    def metrics(self) -> Metrics:
        """What /metrics says now.

        Raises:
            EndpointError: when it does not answer.
        """
        return self.endpoint.metrics()

    def parallel_facts(self) -> Mapping[str, int]:
        """Sizes that the system fingerprint gives away ({"tp": 2}); empty when it is hidden."""
        match = _FINGERPRINT.fullmatch(self.fingerprint)
        if match is None:
            return {}
        sizes = {"tp": 1, "pp": 1, "dp": 1}
        for mode in filter(None, match["modes"].split("-")):
            name = mode.rstrip("0123456789")
            sizes[name] = int(mode[len(name) :])
        return sizes

    def to_json(self) -> dict[str, Any]:
        """The `server` object of the report."""
        return {
            "url": self.url,
            "command": self.command or None,
            "model": self.model.get("id"),
            "version": self.version,
            "fingerprint": self.fingerprint or None,
            "max_model_len": self.max_model_len,
            "stages": dict(self.stages),
            "cache": dict(self.cache),
        }
