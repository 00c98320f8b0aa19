"""What a page of dcgm-exporter tells of the GPUs of a server, and what it can't."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.probes import Device, Devices, dcgm
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.probes.exporter import STALE_SECONDS, Exporter, Freshness
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.host import Driver
from pytest_llmdeploy.probes.metrics import Metrics
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.spec.attach import Probes
from tests.exporter import H100, POD, SOUND, Card, cards, exporter, page

MIB = 1024**2
URL = "http://node-a:9400"
NOW = 1_800_000_000.0
ALL = Probes(dcgm=URL)
OURS = Probes(dcgm=URL, namespace="llm", pod="vllm-*")
INT64_BLANK, FP64_BLANK, INT32_FORBIDDEN = 9223372036854775794, 140737488355328.0, 0x7FFFFFF3


def parsed(texts: Mapping[str, str]) -> Mapping[str, Metrics]:
    return {url: Metrics.parse(text, NOW) for url, text in texts.items()}


def read(text: str | Mapping[str, str], probes: Probes = OURS) -> Devices:
    """The devices on a page, or on pages by their URLs."""
    texts = {URL: text} if isinstance(text, str) else text
    return dcgm.devices(dcgm.read_pages(parsed(texts), probes))


def test_a_sound_page() -> None:
    """Every figure is there, in the units of the records, with the metric that said it."""
    devices = read(page(cards()))
    assert [device.name for device in devices] == [f"GPU {index}" for index in range(8)]
    device = devices[3]
    assert (device.identity, device.kind, device.pods) == ("GPU-3", H100, [POD])
    assert device.used.value == 68_727 * MIB
    assert device.reserved.value == 596 * MIB
    assert device.total.value == (68_727 + 12_236 + 596) * MIB
    assert device.used.source == f"dcgm-exporter at {URL}: DCGM_FI_DEV_FB_USED"
    assert device.read(Field.UTILIZATION).value == 0.97
    assert device.read(Field.POWER).value == 612.5
    assert device.read(Field.ECC_UNCORRECTED).value == 0
    assert device.read(Field.CLOCKS_EVENT_REASONS).value == 4
    assert device.read(Field.NVLINK_LANES).problem.startswith("unsupported: ")
    assert device.tenants.problem.startswith("unsupported: ")


def test_the_default_counters() -> None:
    """What the exporter does not export unless it is told to is unsupported, by name."""
    extra = list(SOUND)[list(SOUND).index("DCGM_FI_DEV_ROW_REMAP_PENDING") :]
    device = read(page([Card(values=dict.fromkeys(extra))]))[0]
    unsupported = {name for name in Field if device.read(name).value is None}
    assert {Field.TEMPERATURE, Field.POWER, Field.SM_CLOCK, Field.UTILIZATION} == (
        set(Field) - unsupported - {Field.ROWS_FAILED}
    )
    problem = device.read(Field.ECC_UNCORRECTED).problem
    assert problem == "unsupported: dcgm-exporter does not export DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"


# What differs on GPU 3, what is read of it then, and what that is: a value, or why there is none.
USED: Callable[[Device], Any] = lambda device: device.used  # noqa: E731
TOTAL: Callable[[Device], Any] = lambda device: device.total  # noqa: E731


def of(name: Field) -> Callable[[Device], Any]:
    return lambda device: device.read(name)


@pytest.mark.parametrize(
    ("values", "reading", "expected"),
    [
        ({"DCGM_FI_DEV_FB_USED": None}, USED, "unsupported: dcgm-exporter does not export"),
        ({"DCGM_FI_DEV_FB_USED": INT64_BLANK}, USED, "unsupported: DCGM has no value"),
        ({"DCGM_FI_DEV_FB_USED": "NaN"}, USED, "unsupported: DCGM has no value"),
        ({"DCGM_FI_DEV_FB_USED": "+Inf"}, USED, "unsupported: DCGM has no value"),
        ({"DCGM_FI_DEV_FB_USED": INT32_FORBIDDEN}, USED, "no permission: DCGM may not read"),
        ({"DCGM_FI_DEV_FB_RESERVED": None}, TOTAL, "unsupported: "),
        ({"DCGM_FI_DEV_FB_RESERVED": None, "DCGM_FI_DEV_FB_TOTAL": 81_559}, TOTAL, 81_559 * MIB),
        (
            {"DCGM_FI_DEV_FB_RESERVED": None, "DCGM_FI_DEV_FB_TOTAL": 81_559},
            lambda device: device.reserved,
            596 * MIB,
        ),
        ({"DCGM_FI_DEV_POWER_USAGE": FP64_BLANK}, of(Field.POWER), "unsupported: DCGM has"),
        ({"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 2}, of(Field.ECC_UNCORRECTED), 2),
        ({"DCGM_FI_DEV_ROW_REMAP_PENDING": 1}, of(Field.ROWS_PENDING), 1),
        ({"DCGM_FI_DEV_ROW_REMAP_FAILURE": 1}, of(Field.ROWS_FAILED), 1),
        ({"DCGM_FI_DEV_CLOCKS_EVENT_REASONS": 0x60}, of(Field.CLOCKS_EVENT_REASONS), 0x60),
        ({"DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION": 1}, of(Field.RECOVERY_ACTION), 1),
        ({"DCGM_FI_DEV_PCIE_LINK_WIDTH": 8}, of(Field.PCIE_WIDTH), 8),
        # The names of today, and those before: the one page has the older, GPU 3 the newer.
        (
            {"DCGM_FI_DEV_GPU_TEMP": None, "DCGM_FI_DEV_GPU_TEMP_CELSIUS": 70},
            of(Field.TEMPERATURE),
            70,
        ),
        (
            {
                "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": None,
                "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": 8,
            },
            of(Field.CLOCKS_EVENT_REASONS),
            8,
        ),
    ],
)
def test_one_gpu_that_differs(
    values: Mapping[str, Any], reading: Callable[[Device], Any], expected: float | str
) -> None:
    """What its rows say is said of it, and of no other."""
    devices = read(page(cards(gpu3=Card(3, values))))
    found = reading(devices[3])
    if isinstance(expected, str):
        assert found.value is None
        assert found.problem.startswith(expected)
    else:
        assert (found.value, found.problem) == (expected, "")
    sound = read(page(cards()))
    assert [reading(d) for i, d in enumerate(devices) if i != 3] == [
        reading(d) for i, d in enumerate(sound) if i != 3
    ]


def test_which_gpus_are_ours() -> None:
    """Those of the pods that serve; others are not looked at, however many there are."""
    text = page(
        cards(
            gpu1=Card(1, pods=()),
            gpu2=Card(2, pods=["llm/embed-0"]),
            gpu3=Card(3, pods=["other/vllm-0"]),
            gpu4=Card(4, pods=["llm/vllm-0", "other/notebook"]),
            gpu5=Card(5, labels={"pod": None, "pod_name": "vllm-1", "pod_namespace": "llm"}),
            gpu6=Card(6, labels={"exported_pod": "vllm-2", "exported_namespace": "llm"}),
        )
    )
    assert [device.name for device in read(text)] == ["GPU 0", "GPU 4", "GPU 5", "GPU 6", "GPU 7"]
    assert read(text)[1].pods == ["llm/vllm-0", "other/notebook"]
    only = Probes(dcgm=URL, pod="embed-0")
    assert [device.name for device in read(text, only)] == ["GPU 2"]
    assert len(read(text, ALL)) == 8
    assert len(read(page(cards(7)))) == 7


def test_a_shared_gpu() -> None:
    """Where its pods have shares of the figure, the figure of the whole GPU is the one."""
    text = page([Card(pods=(*POD.split(","), "other/x"))])
    used = 'DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-0"'
    shares = f'{used},namespace="llm",pod="vllm-0"}} 100\n{used},namespace="other",pod="x"}} 50\n'
    lines = [line for line in text.splitlines(keepends=True) if "FB_USED{" not in line]
    (device,) = read("".join(lines) + f"{used}}} 160\n{shares}")
    assert device.used.value == 160 * MIB
    (device,) = read("".join(lines) + shares)
    assert device.used.problem.startswith("error: DCGM_FI_DEV_FB_USED has several values")


def test_slices() -> None:
    """Two slices of a GPU are two devices."""
    sizes = ({"GPU_I_PROFILE": "1g.10gb", "GPU_I_ID": str(number)} for number in (8, 7))
    found = [Card(2, labels=labels) for labels in sizes]
    devices = read(page(found))
    assert [device.name for device in devices] == ["GPU 2 MIG 7", "GPU 2 MIG 8"]
    assert devices[0].kind == f"{H100} MIG 1g.10gb"
    assert devices[0].identity != devices[1].identity


def test_two_hosts() -> None:
    """Devices go by the name of their host, then by index; each is named by both."""
    other = [Card(n, labels={"hostname": "node-0", "UUID": f"GPU-x{n}"}) for n in range(2)]
    devices = read({URL: page(cards(2)), "http://node-0:9400": page(other)})
    names = [device.name for device in devices]
    assert names == ["node-0 GPU 0", "node-0 GPU 1", "node-a GPU 0", "node-a GPU 1"]
    nameless = [replace(c, labels={**c.labels, "hostname": None}) for c in (*other, *cards(2))]
    devices = read({"http://10.0.0.2:9400": page(nameless[:2]), URL: page(nameless[2:])})
    assert devices[0].name == "10.0.0.2:9400 GPU 0"


@pytest.mark.parametrize(
    ("texts", "probes", "why"),
    [
        ({URL: "up 1\n"}, OURS, "is it a dcgm-exporter"),
        ({URL: ""}, OURS, "is it a dcgm-exporter"),
        ({URL: page(cards()), "http://b": page(cards(2))}, OURS, "GPU-0 is on two pages"),
        ({URL: page([Card(pods=())])}, OURS, "no row names a pod: run the exporter with"),
        ({URL: page([Card(pods=["a/b"])])}, OURS, "no GPU is given to llm/vllm-*; there are a/b"),
        ({URL: page([Card(pods=["a/b"])])}, Probes(dcgm=URL, pod="c"), "given to */c; there are"),
    ],
)
def test_no_devices(texts: Mapping[str, str], probes: Probes, why: str) -> None:
    """A page that does not tell of our GPUs says so; it never looks like a machine without any."""
    with pytest.raises(dcgm.PageError) as caught:
        dcgm.read_pages(parsed(texts), probes)
    assert why in str(caught.value)


def test_samples_with_times() -> None:
    """Where a Prometheus in between says when it read them, old samples are errors."""
    (device,) = read(page([Card()], at=NOW - 59))
    assert device.used.value is not None
    assert device.used.at == NOW - 59
    (device,) = read(page([Card()], at=NOW - 75))
    assert device.used.problem == "error: stale: DCGM_FI_DEV_FB_USED is 75 s old"


def test_kinds_without_blanks() -> None:
    """An exporter that writes names without blanks means the same GPU."""
    (device,) = read(page([Card(labels={"modelName": H100.replace(" ", "-")})]))
    assert device.kind == H100
    (device,) = read(page([Card(labels={"modelName": "NVIDIA B300-SXM"})]))
    assert device.kind == "NVIDIA B300-SXM"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, Driver("580.95.05", "13.0")),
        ({"DCGM_FI_CUDA_DRIVER_VERSION": "12040"}, Driver("580.95.05", "12.4")),
        ({"DCGM_FI_CUDA_DRIVER_VERSION": None}, Driver("580.95.05", "")),
        (
            {"DCGM_FI_DRIVER_VERSION": "550.1"},
            Driver(problem="error: the nodes differ: 550.1, 580.95.05"),
        ),
    ],
)
def test_the_driver(labels: Mapping[str, str | None], expected: Driver) -> None:
    """It stands in a label, and is one driver if all nodes have the same."""
    first = Card(labels=labels if not expected.problem else {})
    other = Card(2, labels={"DCGM_FI_DRIVER_VERSION": "1.0"}, pods=["other/x"])

    def driver(**found: str) -> Driver:
        return dcgm.driver(dcgm.read_pages(parsed(found), OURS))

    assert driver(a=page([first]), b=page([Card(1, labels=labels), other])) == expected
    none = Card(labels={"DCGM_FI_DRIVER_VERSION": None})
    assert driver(a=page([none])).problem.startswith("unsupported: ")


def test_links() -> None:
    """Every pair within a group of four: linked, not linked, or nobody says so."""
    text = page(cards(gpu1=Card(1, unlinked=[3])))
    pairs = dcgm.nvlink_pairs(dcgm.read_pages(parsed({URL: text}), OURS), 4)
    values = {name: pair.value for name, pair in pairs.items()}
    assert len(values) == 12
    assert {name for name, value in values.items() if value != 1} == {"GPU 1 – GPU 3"}
    assert values["GPU 1 – GPU 3"] == 0
    silent = "".join(line for line in text.splitlines(keepends=True) if "P2P" not in line)
    pairs = dcgm.nvlink_pairs(dcgm.read_pages(parsed({URL: silent}), OURS), 2)
    assert all(pair.problem.startswith("unsupported: ") for pair in pairs.values())
    other = [Card(0, labels={"hostname": "node-0", "UUID": "GPU-x"})]
    two = dcgm.read_pages(parsed({URL: page(cards(1)), "http://b": page(other)}), OURS)
    assert dcgm.nvlink_pairs(two, 2)["node-0 GPU 0 – node-a GPU 0"].value is None


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(5)), st.sets(st.integers(0, 4)))
def test_order_does_not_matter(order: list[int], ours: set[int]) -> None:
    """However the rows are mixed, the devices are the pod's, by index."""
    found = [Card(index, pods=[POD] if index in ours else ["a/b"]) for index in order]
    if not ours:
        return
    assert [device.identity for device in read(page(found))] == [f"GPU-{i}" for i in sorted(ours)]


@pytest.mark.parametrize("cut", [1, 700, 5000])
def test_half_a_page(cut: int) -> None:
    """A page that ends in the middle of a line is refused: half a figure is one as well."""
    text = page(cards(3))[: -cut if cut == 1 else cut]
    with exporter(text) as fake:
        found = Exporter.of(Probes(dcgm=fake.url)).devices()
    assert found.problem == f"error: {fake.url}/metrics is cut off"


def test_a_look() -> None:
    """What the exporter says over HTTP, of the devices, the machine, and its links."""
    with exporter() as fake:
        found = Exporter.of(Probes(dcgm=f"{fake.url}/metrics", pod="vllm-*"))
        assert len(found.devices()) == 8
        host = found.host(4)
    assert len(host.devices) == 8
    assert host.driver == Driver("580.95.05", "13.0")
    assert len(host.nvlink) == 12


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"texts": {"/metrics": "<html><body>Sign in</body></html>\n"}},
            "not in Prometheus' text format",
        ),
        ({"status": 500}, "answers HTTP 500"),
        ({"texts": {"/metrics": "x" * 17 * MIB}}, "answers more than"),
        ({"delay": 0.5}, "timed out: "),
        ({"texts": {"/metrics": "up 1\n"}}, "is it a dcgm-exporter?"),
    ],
)
def test_an_exporter_that_fails(change: Mapping[str, Any], why: str) -> None:
    """Whatever comes back, it is a problem of the devices, of the host and of the XIDs."""
    with exporter() as fake:
        for name, value in change.items():
            setattr(fake, name, value)
        found = Exporter(ALL, [Endpoint(fake.url, seconds=0.2)])
        host = found.host(1)
        problems = {found.devices().problem, found.xids().problem, host.devices.problem}
    (problem,) = problems
    assert host.driver.problem == problem
    assert problem.startswith("error: ")
    assert why in problem


def test_nobody_there() -> None:
    """A name that nobody has, and a port where nobody listens."""
    found = Exporter.of(Probes(dcgm="http://nowhere.invalid:9400"))
    assert found.devices().problem.startswith("error: nowhere.invalid does not resolve: ")
    assert "does not answer" in Exporter.of(Probes(dcgm="http://127.0.0.1:1")).devices().problem


def test_staleness() -> None:
    """A page is stale when nothing that must move has moved for three looks and 90 s."""
    fresh = Freshness()
    assert fresh.look([1], 0) == fresh.look([1], 50) == fresh.look([1], STALE_SECONDS) == ""
    assert fresh.look([1], 91) == "stale: nothing on the page has moved for 91 s"
    assert fresh.look([2], 92) == fresh.look([2], 1000) == ""
    nothing = Freshness()
    assert [nothing.look([], now) for now in range(0, 900, 100)] == [""] * 9


def test_when_it_was_read() -> None:
    """At the earliest when the last look saw something else; where nothing tells, at the look."""
    fresh, found = Freshness(), []
    for now, seen in ((10, 1), (11, 1), (12, 2), (13, 2), (14, 3)):
        fresh.look([seen], now)
        found.append(fresh.at)
    assert found == [10, 10, 11, 11, 13]
    fresh.look([], 20)
    assert fresh.at == 20


@pytest.mark.parametrize(
    ("temperatures", "expected"),
    [
        ((60, 60, 60, 60), None),
        ((70, 70, 70, 70), None),
        ((70, 70, 80, 80), 80),
        ((60, 60, 70, 60), 70),
    ],
)
def test_under_load(temperatures: tuple[int, ...], expected: float | None) -> None:
    """What was read before the traffic began is not what the traffic did: the first look of a
    recording can't show it, nor any until the page moves in between.
    """
    now = [100.0]
    gone = {dcgm.ENERGY: None}
    with exporter(page([Card(values={**gone, "DCGM_FI_DEV_GPU_TEMP": 60})])) as fake:
        watched = Exporter(ALL, [Endpoint(fake.url)], clock=lambda: now[0])
        watched.devices()
        looks = []
        for number, temperature in enumerate(temperatures, 101):
            now[0] = number
            fake.say(page([Card(values={**gone, "DCGM_FI_DEV_GPU_TEMP": temperature})]))
            looks.append(watched.devices())
    recording = Recording(looks, origin=101.0)
    (seen,) = recording.most(lambda device: device.read(Field.TEMPERATURE)).values()
    assert seen.value == expected
    assert seen.problem.startswith("error: stale: ") == (expected is None)


@pytest.mark.parametrize("energy", [None, 1.0])
def test_an_exporter_that_stands_still(energy: float | None) -> None:
    """It answers, and what it says is old: an error, until something moves."""
    now, found = [0.0], cards(2)
    found = [replace(c, values={dcgm.ENERGY: energy and energy + c.index}) for c in found]
    with exporter(page(found)) as fake:
        watched = Exporter(ALL, [Endpoint(fake.url)], clock=lambda: now[0])
        for now[0] in (0, 60, 120):
            seen = watched.devices()
        assert seen.problem.startswith("error: stale: nothing on the page has moved for 120 s")
        assert watched.xids().problem == watched.host(1).devices.problem == seen.problem
        moved = {"DCGM_FI_DEV_GPU_TEMP": 62, dcgm.ENERGY: energy and 99.0}
        fake.say(page([found[0], replace(found[1], values=moved)]))
        assert watched.devices().problem == ""
        now[0] = 240
        # The energy stands still, whatever else moves.
        fake.say(page([found[0], replace(found[1], values={**moved, "DCGM_FI_DEV_SM_CLOCK": 9})]))
        watched.devices()
        assert bool(watched.devices().problem) == (energy is not None)


def test_xids() -> None:
    """An XID counts when it was not the last one at the first look."""
    before, later = {dcgm.XID: 13}, {dcgm.XID: 79}
    now = [10.0]
    with exporter(page(cards(3, gpu1=Card(1, before)))) as fake:
        watched = Exporter(OURS, [Endpoint(fake.url)], clock=lambda: now[0])
        watched.devices()
        now[0] = 70.0
        found = watched.xids()
        assert (found.seen, found.seconds, found.problem) == ({}, 60.0, "")
        assert found.devices == ["GPU 0", "GPU 1", "GPU 2"]
        fake.say(page(cards(3, gpu1=Card(1, before), gpu2=Card(2, later))))
        watched.devices()
        fake.say(page(cards(3, gpu1=Card(1, later), gpu2=Card(2, before))))
        assert watched.xids().seen == {"GPU 1": [79], "GPU 2": [79, 13]}
        fake.say(page(cards(3, gpu1=Card(1, {dcgm.XID: None}))))
        assert watched.xids().problem.startswith("unsupported: dcgm-exporter does not export")


def test_every_node_behind_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A headless Service: each address is asked, by the name, and all must answer."""
    other = [Card(n, labels={"hostname": "node-b", "UUID": f"GPU-b{n}"}) for n in range(2)]
    with exporter(page(cards(2))) as first:
        port = first.port
        with exporter(page(other), "127.0.0.2", port) as second:

            def resolve(host: str, port: int, **_: Any) -> list[Any]:
                assert host == "exporters"
                v4 = [("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.1", port)]
                v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
                return [v6, *((socket.AF_INET, socket.SOCK_STREAM, 6, "", a) for a in v4)]

            monkeypatch.setattr(socket, "getaddrinfo", resolve)
            found = Exporter.of(Probes(dcgm=f"http://exporters:{port}"))
            refused = Exporter.of(Probes(dcgm="https://exporters"))
            monkeypatch.undo()
            names = [device.name for device in found.devices()]
            second.status = 503
            assert "127.0.0.2" in found.devices().problem
    assert names == ["node-a GPU 0", "node-a GPU 1", "node-b GPU 0", "node-b GPU 1"]
    assert {*first.hosts, *second.hosts} == {f"exporters:{port}"}
    assert "exporters has 2 addresses, and a certificate" in refused.devices().problem


def test_it_is_quick() -> None:
    """A look at eight GPUs costs what one each second may cost, while DCGM does not read anew."""
    with exporter() as fake:
        watched = Exporter(OURS, [Endpoint(fake.url)])
        watched.devices()
        began = time.thread_time()
        for _ in range(10):
            watched.devices()
        assert (time.thread_time() - began) / 10 < 0.02
