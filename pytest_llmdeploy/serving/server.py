"""A vLLM server that is ready: what it says of itself, and the devices under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import Devices
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.spec import Spec

if TYPE_CHECKING:
    from pytest_llmdeploy.probes.endpoint import Endpoint
    from pytest_llmdeploy.probes.metrics import Metrics
    from pytest_llmdeploy.probes.server_info import Settings
    from pytest_llmdeploy.serving.introspection import Introspection

_MOST_AT_ONCE = 32


class ServerFailedError(Exception):
    """The server did not become ready. The first line says why, the others what to do."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a server left behind when it was stopped: its processes, the addresses where it still
    listens, its temporary files, its shared memory, and what is in use of the devices once no more
    comes back. `removed` is what we had to remove after it, by kind.
    """

    processes: Sequence[str]
    seconds: float
    devices: Devices = field(default_factory=lambda: Devices((), "the devices after the stop"))
    sockets: Sequence[str] = ()
    files: Sequence[str] = ()
    shared_memory: Sequence[str] = ()
    removed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> Mapping[str, Sequence[str]]:
        """What is left, by kind and name."""
        return {
            "processes": list(self.processes),
            "sockets": list(self.sockets),
            "temporary files": list(self.files),
            "shared memory": list(self.shared_memory),
        }


def unwatched() -> Xids:
    """Of devices that nobody watches."""
    return Xids(problem="unsupported: nobody watches for XIDs here")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, launched or attached to.

    `model` is its entry of /v1/models, `cache` the labels of `vllm:cache_config_info` of its first
    engine (empty when it does not report them), `stages` the seconds of each stage of its start,
    `replicas` the endpoints of every replica behind `endpoint` (none: it is the only one),
    `introspection` what its workers say of themselves (None: nobody asked).
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
    introspection: Introspection | None = None

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
        from pytest_llmdeploy.probes.server_info import parallel_sizes  # noqa: PLC0415 - if live

        return parallel_sizes(self.fingerprint)

    def settings(self) -> Mapping[str, Settings]:
        """What the server tells of its settings, and each of its replicas of its own, by URL."""
        from pytest_llmdeploy.probes.server_info import (  # noqa: PLC0415 - if live
            read_settings,
            settings_in_dev_mode,
            settings_told,
        )

        told = settings_told(self.model, self.version, self.parallel_facts(), self.cache)
        found = {self.url: {**told, **settings_in_dev_mode(self.endpoint)}}
        if not self.replicas:
            return found
        ask = partial(read_settings, wanted=self.spec.served_model)
        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
            asked = pool.map(ask, self.replicas)
            return found | {e.url: own for e, own in zip(self.replicas, asked, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """The `server` object of the report."""
        asked = self.introspection
        return {
            "url": self.url,
            "command": self.command or None,
            "model": self.model.get("id"),
            "version": self.version,
            "fingerprint": self.fingerprint or None,
            "max_model_len": self.max_model_len,
            "stages": dict(self.stages),
            "cache": dict(self.cache),
            "workers": asked and [asdict(worker) for worker in asked.workers],
            "introspection": asked and {"added": list(asked.added), "problem": asked.problem},
        }
