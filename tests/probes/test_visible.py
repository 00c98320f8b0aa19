"""CUDA_VISIBLE_DEVICES as CUDA reads it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.probes.visible import (
    AmbiguousDevicesError,
    Place,
    chosen,
    visible_devices,
)
from tests.probes.test_nvml import spec

# Eight GPUs, of which the last has two slices, and the third is lost.
GPUS = [Place(index, f"GPU-{index}a{index}-ff") for index in range(7)]
GPUS[2] = Place(2, problem="lost: GPU is lost")
PLACES = [*GPUS, *(Place(7, "GPU-7a7-ff", part, f"MIG-{part}b") for part in range(2))]


def names(visible: str | None) -> list[str]:
    return [place.name for place in chosen(visible, PLACES)]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("0", ["GPU 0"]),
        ("3, 1", ["GPU 3", "GPU 1"]),
        (" 3\t", ["GPU 3"]),
        ("2", ["GPU 2"]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("0,1,-1,3", ["GPU 0", "GPU 1"]),
        ("3,none,4", ["GPU 3"]),
        ("3,,4", ["GPU 3"]),
        ("0,9,1", ["GPU 0"]),
        ("0x1", []),
        ("²", []),
        ("NoDevFiles", []),
        ("GPU-3a3-ff,GPU-1a", ["GPU 3", "GPU 1"]),
        ("GPU-4,1", ["GPU 4", "GPU 1"]),
        ("1,GPU-", ["GPU 1"]),
        ("1,GPU-c,3", ["GPU 1"]),
        ("1,gpu-4,3", ["GPU 1"]),
        ("7", ["GPU 7 MIG 0", "GPU 7 MIG 1"]),
        ("GPU-7", ["GPU 7 MIG 0", "GPU 7 MIG 1"]),
        ("MIG-1b,0", ["GPU 7 MIG 1", "GPU 0"]),
        ("MIG-", []),
    ],
)
def test_what_is_listed_before_what_names_nothing(text: str, seen: list[str]) -> None:
    """By index, by UUID or how it begins, if that is only one's; in the order of the list."""
    assert names(text) == seen


@pytest.mark.parametrize("text", ["0,0", "1,3,1", "4,GPU-4", "MIG-0,7", "0,0,none"])
def test_one_listed_twice(text: str) -> None:
    """However it is named, CUDA then shows none, and the text says which it is."""
    with pytest.raises(AmbiguousDevicesError, match=r"names GPU \d.* twice"):
        chosen(text, PLACES)


def test_a_repetition_that_is_not_reached() -> None:
    """What comes after the end of the list is nothing."""
    assert names("0,none,0") == ["GPU 0"]


@given(st.lists(st.integers(-1, 12), unique=True, max_size=6))
@settings(max_examples=50)
def test_indices_end_where_there_is_no_gpu(entries: list[int]) -> None:
    """The list stands up to the first that is out of range."""
    places = [Place(index, f"GPU-{index}") for index in range(8)]
    end = next((i for i, entry in enumerate(entries) if entry not in range(8)), len(entries))
    found = chosen(",".join(map(str, entries)), places)
    assert [place.gpu for place in found] == entries[:end]


def test_all_are_visible_where_nothing_is_said() -> None:
    """Slices stand for their GPU."""
    assert names(None) == [place.name for place in PLACES]


def test_the_server_inherits_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from what the spec sets, itself or from another variable."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(spec()) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("OURS", "4")
    assert visible_devices(spec()) == "2,3"
    assert visible_devices(spec(CUDA_VISIBLE_DEVICES="1")) == "1"
    assert visible_devices(spec(CUDA_VISIBLE_DEVICES="")) == ""
