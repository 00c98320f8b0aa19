"""Dcgm-exporters that are asked again and again: whether their pages are alive, and new XIDs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import urlsplit

from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.probes import dcgm
from pytest_llmdeploy.probes.addresses import behind
from pytest_llmdeploy.probes.devices import Devices
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError, EndpointTimeoutError
from pytest_llmdeploy.probes.host import Driver, Host
from pytest_llmdeploy.probes.metrics import Metrics
from pytest_llmdeploy.probes.xids import Xids
from pytest_llmdeploy.spec.attach import Probes

# The sampler looks once a second, and a page comes in milliseconds.
_ANSWER_SECONDS = 5.0
# DCGM reads its fields every 30 s unless the exporter is told otherwise: three of them.
STALE_SECONDS = 90.0
_LEAST_LOOKS = 3


@dataclass
class Freshness:
    """When what is seen was read, at the earliest (`at`), by when what must move was last seen to
    move.
    """

    seen: Sequence[object] = ()
    at: float = 0.0
    since: float = 0.0
    last: float = 0.0
    looks: int = 0

    def look(self, seen: Sequence[object], now: float) -> str:
        """Why what is seen now is stale; empty while it is not, or nothing tells."""
        if not seen or seen != self.seen:
            # It was read after the last look, or nobody knows when.
            self.at = self.last if seen and self.seen else now
            self.seen, self.since, self.looks = seen, now, 0
        self.last, self.looks = now, self.looks + 1
        seconds = now - self.since
        if self.looks < _LEAST_LOOKS or seconds <= STALE_SECONDS:
            return ""
        return f"stale: nothing on the page has moved for {seconds:.0f} s"


@dataclass
class Exporter:
    """The exporters of all nodes. What they say of the devices of `probes`, and since when."""

    probes: Probes
    endpoints: Sequence[Endpoint] = ()
    problem: str = ""
    clock: Callable[[], float] = time.time
    _read: dict[str, tuple[bytes, Metrics]] = field(default_factory=dict)
    _fresh: dict[str, Freshness] = field(default_factory=dict)
    _last_xids: dict[str, float] = field(default_factory=dict)
    _seen_xids: dict[str, list[int]] = field(default_factory=dict)
    _began: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, probes: Probes) -> Self:
        """Everyone behind the URL of `probes`."""
        parts = urlsplit(probes.dcgm)
        query = f"?{parts.query}" if parts.query else ""
        endpoint = Endpoint(
            f"{parts.scheme}://{parts.netloc}",
            metrics_path=f"{parts.path.rstrip('/') or '/metrics'}{query}",
            seconds=_ANSWER_SECONDS,
        )
        try:
            return cls(probes, behind(endpoint))
        except EndpointError as error:
            return cls(probes, problem=f"error: {error}")

    def devices(self) -> Devices:
        """The devices, as the pages tell of them now; one page that can't be read is a problem of
        all, for nobody knows which devices are on it.
        """
        try:
            found = self._look(self._pages())
        except (EndpointError, dcgm.PageError) as error:
            return Devices((), dcgm.SOURCE, _problem(error))
        return dcgm.devices(found)

    def host(self, group: int) -> Host:
        """The machines of the server, as far as they can be seen: it runs on them already. `group`
        is the size of its tensor-parallel groups.
        """
        try:
            found = self._look(self._pages())
        except (EndpointError, dcgm.PageError) as error:
            problem = _problem(error)
            unseen = {"devices": Evidence(None, "", dcgm.SOURCE, problem=problem)}
            return Host(Devices((), dcgm.SOURCE, problem), unseen, Driver(problem=problem))
        return Host(dcgm.devices(found), dcgm.nvlink_pairs(found, group), dcgm.driver(found))

    def xids(self) -> Xids:
        """The XIDs that are the last ones of a device now and were not at the first look. The same
        one twice can't be told from once.
        """
        source = f"{dcgm.SOURCE}: {dcgm.XID}, the last one of each device"
        try:
            found = self._look(self._pages())
        except (EndpointError, dcgm.PageError) as error:
            return Xids(source=source, problem=_problem(error))
        read = {gpu.identity: gpu.read(dcgm.XID, "") for gpu in found}
        names = {device.identity: device.name for device in dcgm.devices(found)}
        if unread := next((xid for xid in read.values() if xid.value is None), None):
            return Xids(source=source, problem=unread.problem)
        seen = {names[who]: xids for who, xids in self._seen_xids.items() if who in names}
        seconds = self.clock() - self._began if self._began is not None else 0.0
        return Xids(seen, list(names.values()), seconds, source)

    def _pages(self) -> Mapping[str, Metrics]:
        if self.problem:
            raise dcgm.PageError(self.problem.removeprefix("error: "))
        with ThreadPoolExecutor(len(self.endpoints)) as pool:
            pages = pool.map(self._page, self.endpoints)
            return {e.url: page for e, page in zip(self.endpoints, pages, strict=True)}

    def _page(self, endpoint: Endpoint) -> Metrics:
        """What a page says. It is the same for as long as DCGM does not read anew, and costs then
        nothing to understand.
        """
        page = endpoint.metrics_page()
        last, metrics = self._read.get(endpoint.url, (b"", None))
        if metrics is None or page != last:
            metrics = endpoint.metrics_on(page)
            self._read[endpoint.url] = page, metrics
        return replace(metrics, at=self.clock())

    def _look(self, pages: Mapping[str, Metrics]) -> Sequence[dcgm.Gpu]:
        found, now = dcgm.read_pages(pages, self.probes), self.clock()
        with self._lock:
            self._began = now if self._began is None else self._began
            for url in pages:
                own = [gpu for gpu in found if gpu.page == url]
                fresh = self._fresh.setdefault(url, Freshness())
                if old := fresh.look(dcgm.moving(own), now):
                    msg = f"{old} ({url})"
                    raise dcgm.PageError(msg)
                for gpu in own:
                    gpu.at = fresh.at
                    self._notice(gpu)
        return found

    def _notice(self, gpu: dcgm.Gpu) -> None:
        xid, who = gpu.read(dcgm.XID, "").value, gpu.identity
        before = self._last_xids.setdefault(who, xid or 0.0)
        if xid is not None and xid != before:
            self._last_xids[who] = xid
            self._seen_xids.setdefault(who, []).extend([int(xid)] if xid else [])


def _problem(error: Exception) -> str:
    late = "timed out: " if isinstance(error, EndpointTimeoutError) else ""
    return f"error: {late}{error}"
