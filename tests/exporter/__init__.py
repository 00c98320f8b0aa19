"""A dcgm-exporter of the tests: pages as the real one renders them, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

H100 = "NVIDIA H100 80GB HBM3"
POD = "llm/vllm-0"
# A sound H100 that serves; the type of each metric is the one of the exporter's counters file.
SOUND: Mapping[str, float] = {
    "DCGM_FI_DEV_SM_CLOCK": 1755,
    "DCGM_FI_DEV_GPU_TEMP": 61,
    "DCGM_FI_DEV_POWER_USAGE": 612.5,
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 9_876_543_210,
    "DCGM_FI_DEV_GPU_UTIL": 97,
    "DCGM_FI_DEV_XID_ERRORS": 0,
    "DCGM_FI_DEV_FB_FREE": 12_236,
    "DCGM_FI_DEV_FB_USED": 68_727,
    "DCGM_FI_DEV_FB_RESERVED": 596,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
    # Not among the exporter's defaults.
    "DCGM_FI_DEV_ROW_REMAP_PENDING": 0,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 0,
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": 4,
    "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION": 0,
    "DCGM_FI_DEV_PCIE_LINK_GEN": 5,
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN": 5,
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": 16,
    "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": 16,
    "DCGM_FI_DEV_COMPUTE_MODE": 0,
    "DCGM_FI_DEV_PERSISTENCE_MODE": 1,
    "DCGM_FI_DEV_MIG_MODE": 0,
}
P2P = "DCGM_EXP_P2P_STATUS"
_COUNTERS = {"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"}


@dataclass(frozen=True)
class Card:
    """One GPU, or a slice of one: `values` are what differs from a sound one (None: not exported),
    `pods` who has it, `labels` what else its rows say, or say otherwise (None: not at all),
    `unlinked` the GPUs that it does not reach.
    """

    index: int = 0
    values: Mapping[str, float | str | None] = field(default_factory=dict)
    pods: Sequence[str] = (POD,)
    labels: Mapping[str, str | None] = field(default_factory=dict)
    unlinked: Sequence[int] = ()

    def links(self, others: Sequence[Card]) -> Iterator[str]:
        for other in (card.index for card in others if card.index != self.index):
            status = 3 if other in self.unlinked else 0
            peer = replace(
                self, labels={**self.labels, "peer_gpu": str(other)}, values={P2P: status}
            )
            yield from peer.rows(P2P)

    def rows(self, metric: str) -> Iterator[str]:
        value = {**SOUND, **self.values}.get(metric)
        for pod in self.pods or ("",):
            namespace, _, name = pod.partition("/")
            own = {"container": "vllm", "namespace": namespace, "pod": name} if pod else {}
            said = {
                "gpu": str(self.index),
                "UUID": f"GPU-{self.index}",
                "pci_bus_id": f"00000000:{self.index:02X}:00.0",
                "device": f"nvidia{self.index}",
                "modelName": H100,
                "hostname": "node-a",
                "DCGM_FI_DRIVER_VERSION": "580.95.05",
                "DCGM_FI_CUDA_DRIVER_VERSION": "13000",
                **own,
                **self.labels,
            }
            text = ",".join(f'{key}="{text}"' for key, text in said.items() if text is not None)
            if value is not None:
                yield f"{metric}{{{text}}} {value}\n"


def cards(count: int = 8, /, **changed: Card) -> list[Card]:
    """So many sound GPUs, but for those that are given (`gpu3=Card(…)`)."""
    return [changed.get(f"gpu{index}", Card(index)) for index in range(count)]


def page(found: Sequence[Card], at: float | None = None) -> str:
    """The page of an exporter; `at` (Unix seconds) gives its samples a time, as Prometheus does."""
    stamp = "" if at is None else f" {round(at * 1000)}"
    names = dict.fromkeys([*SOUND, *(name for card in found for name in card.values)])
    text = "".join(row.rstrip("\n") + f"{stamp}\n" for card in found for row in card.links(found))
    text = f"# TYPE {P2P} counter\n{text}" if text else ""
    for name in names:
        rows = [row.rstrip("\n") + f"{stamp}\n" for card in found for row in card.rows(name)]
        kind = "counter" if name in _COUNTERS else "gauge"
        text += f"# HELP {name} …\n# TYPE {name} {kind}\n{''.join(rows)}" if rows else ""
    return text


@dataclass
class Pages:
    """What a server answers, by path, and who was asked for; may be changed while it runs. `{n}` in
    a text is how many were answered before. `posted` are the bodies that were sent to it.
    """

    url: str
    texts: dict[str, str]
    status: int = 200
    delay: float = 0.0
    hosts: list[str] = field(default_factory=list)
    posted: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def say(self, text: str) -> None:
        """Its metrics are these from now on."""
        self.texts["/metrics"] = text


@contextmanager
def exporter(text: str = "", host: str = "127.0.0.1", port: int = 0) -> Iterator[Pages]:
    """An exporter that serves this page."""
    with pages({"/metrics": text or page(cards())}, host, port) as found:
        yield found


@contextmanager
def pages(texts: Mapping[str, str], host: str = "127.0.0.1", port: int = 0) -> Iterator[Pages]:
    """A server of some pages."""
    found = Pages("", dict(texts))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.hosts.append(self.headers["Host"])
            time.sleep(found.delay)
            text = found.texts.get(self.path)
            body = (text or "").replace("{n}", str(len(found.hosts))).encode()
            self.send_response(404 if text is None else found.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            found.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer((host, port), Handler) as server:
        server.daemon_threads = True
        found.url = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
