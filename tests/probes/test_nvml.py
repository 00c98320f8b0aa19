"""GPUs as the probes read them, over the fake driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from pytest_llmdeploy.probes import nvml, read_host, read_used_gpus
from pytest_llmdeploy.probes.host import visible_gpus
from pytest_llmdeploy.spec import Spec
from tests.fake_nvml import H100, L40S, FakeNvml, build

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the fake is compiled with cc")

MIB = 1024**2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """Eight healthy H100s."""
    fake = FakeNvml(library, tmp_path / "machine")
    fake.write(H100)
    monkeypatch.setenv("FAKE_NVML", str(fake.state))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake.load()
    yield fake
    fake.write(H100)


def spec(tensor: int = 1, pipeline: int = 1, **env: str) -> Spec:
    return Spec.model_validate(
        {
            "version": 1,
            "model": {"id": "m"},
            "hardware": {"device": "H100-SXM-80GB", "devices_per_node": 8},
            "parallel": {"tensor": tensor, "pipeline": pipeline},
            "serve": {"env": env},
        }
    )


def test_every_gpu_is_listed_with_its_memory(machine: FakeNvml) -> None:
    """Used is what processes hold: what the driver keeps back is counted apart."""
    machine.update({"gpu3.mem.used": 70_000 * MIB})
    devices = nvml.read_gpus()
    assert [device.name for device in devices] == [f"GPU {index}" for index in range(8)]
    assert [device.identity for device in devices] == [H100.uuid(index) for index in range(8)]
    third = devices[3]
    assert (third.kind, third.used.value) == (H100.product, 70_000 * MIB)
    assert (third.total.value, third.reserved.value) == (81559 * MIB, 668 * MIB)
    assert third.headroom.value == (81559 - 668 - 70_000) * MIB


def test_a_lost_gpu_is_listed_unread(machine: FakeNvml) -> None:
    """A GPU that fell off the bus keeps its place, and no figure of it looks like a number."""
    machine.update({"gpu3.error.*": pynvml.NVML_ERROR_GPU_IS_LOST})
    devices = nvml.read_gpus()
    assert len(devices) == 8
    for reading in (devices[3].used, devices[3].utilization, devices[3].headroom):
        assert (reading.value, reading.problem.partition(":")[0]) == (None, "lost")
    assert devices[4].used.value is not None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "unsupported"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "unsupported"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_UNKNOWN, "error"),
    ],
)
def test_unread_memory_says_why(machine: FakeNvml, code: int, reason: str) -> None:
    """Memory that NVML does not tell is no number, also where the older call would answer."""
    machine.update({"gpu1.error.MemoryInfo_v2": code})
    used = nvml.read_gpus()[1].used
    assert (used.value, used.problem.partition(":")[0]) == (None, reason)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "error: the NVIDIA driver is not loaded"),
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            "error: NVML and the kernel driver differ: reboot",
        ),
        (pynvml.NVML_ERROR_UNKNOWN, "error: NVML does not start: Unknown Error"),
    ],
)
def test_a_driver_that_does_not_start(machine: FakeNvml, code: int, text: str) -> None:
    """Each reason has its own text, for the devices and for their links."""
    machine.update({"error.InitWithFlags": code})
    assert {reading.problem for reading in nvml.read_gpus().used.values()} == {text}
    assert {link.problem for link in nvml.nvlink_pairs([[0, 1]]).values()} == {text}


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, the devices say so instead of being none."""

    def refuse(_name: str) -> None:
        raise OSError

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", refuse)
    problem = "error: there is no NVIDIA driver here (libnvidia-ml.so.1)"
    assert nvml.read_gpus().problem == problem
    assert [reading.problem for reading in nvml.read_gpus().utilization.values()] == [problem]


def test_a_broken_link_is_one_pair(machine: FakeNvml) -> None:
    """Of the 28 pairs of eight GPUs, the one without NVLink is 0 and the others are 1."""
    machine.update({"p2p.2.5.nvlink": pynvml.NVML_P2P_STATUS_NOT_SUPPORTED})
    links = read_host(spec(tensor=8)).nvlink
    assert len(links) == 28
    assert [name for name, link in links.items() if link.value != 1] == ["GPU 2 – GPU 5"]


def test_pcie_gpus_have_no_nvlink(machine: FakeNvml) -> None:
    """GPUs that reach each other over PCIe only are not linked."""
    machine.write(L40S)
    assert [link.value for link in nvml.nvlink_pairs([[0, 1]]).values()] == [0]


def test_a_link_to_a_lost_gpu_is_unread(machine: FakeNvml) -> None:
    """A pair that can't be asked is neither linked nor unlinked."""
    machine.update({"gpu1.error.*": pynvml.NVML_ERROR_GPU_IS_LOST})
    (link,) = nvml.nvlink_pairs([[0, 1]]).values()
    assert (link.value, link.problem.partition(":")[0]) == (None, "lost")


def test_links_are_those_within_a_tensor_group(machine: FakeNvml) -> None:
    """Pairs across tensor groups do not matter, nor do GPUs beyond those that serve."""
    del machine
    links = read_host(spec(tensor=2, pipeline=2, CUDA_VISIBLE_DEVICES="5,4,1,0,7")).nvlink
    assert list(links) == ["GPU 5 – GPU 4", "GPU 1 – GPU 0"]


def test_used_gpus_are_the_first_visible_ones_by_stage(machine: FakeNvml) -> None:
    """The server takes the first GPUs that it sees; ranks fill one stage after the other."""
    del machine
    used = read_used_gpus(spec(tensor=2, pipeline=2, CUDA_VISIBLE_DEVICES="7,6,5,4,3"))
    assert [(d.name, d.stage) for d in used] == [
        ("GPU 7", 0),
        ("GPU 6", 0),
        ("GPU 5", 1),
        ("GPU 4", 1),
    ]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("0", [0]),
        ("3, 1", [3, 1]),
        ("", []),
        ("-1", []),
        ("0,1,-1,2", [0, 1]),
        ("2,none,3", [2]),
        ("0,9,1", [0]),
    ],
)
def test_cuda_visible_devices(machine: FakeNvml, text: str, seen: list[int]) -> None:
    """What is listed before the first entry that names no GPU, in the order of the list."""
    del machine
    indices = visible_gpus(spec(CUDA_VISIBLE_DEVICES=text))
    assert [device.name for device in nvml.read_gpus(indices)] == [f"GPU {i}" for i in seen]


def test_cuda_visible_devices_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server inherits our environment, apart from what the spec sets."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(spec()) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus(spec()) == [2, 3]
    assert visible_gpus(spec(CUDA_VISIBLE_DEVICES="1")) == [1]


def test_another_machine_is_not_read(machine: FakeNvml) -> None:
    """The GPUs here say nothing of a server elsewhere."""
    del machine
    host = read_host(spec(tensor=2), "http://10.0.0.7:8000")
    assert not host.devices
    assert {link.problem for link in host.nvlink.values()} == {
        "unsupported: the server runs on another machine"
    }
