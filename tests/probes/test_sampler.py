"""Looks at devices over time: when they are made, and what they come to."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.probes import Devices, sampler
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.probes.sampler import Sampler
from tests.checks.scenes import GIB, gpus
from tests.serving.processes import eventually


def recording(*looks: Sequence[float | None]) -> Recording:
    """Looks at GPUs with so many GiB in use, a second apart."""
    seen = [replace(gpus(look), at=1.0 + index) for index, look in enumerate(looks)]
    return Recording(tuple(seen), origin=1.0)


class TestSampler:
    """Looks at the start, in between and at the end."""

    def test_a_short_block_has_a_look_at_both_ends(self) -> None:
        """Even when it does nothing."""
        began = time.time()
        with Sampler(lambda: gpus((1,))) as running:
            pass
        found = running.recording
        assert len(found.looks) == 2
        assert began <= found.origin <= found.looks[0].at <= found.looks[1].at <= time.time()

    def test_looks_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As many as the time allows, each with its own values."""
        monkeypatch.setattr(sampler, "INTERVAL_SECONDS", 0.02)
        values = iter(range(1, 100))
        with Sampler(lambda: gpus((next(values),))) as running:
            eventually(lambda: len(running.recording.looks) >= 4)
        found = running.recording.looks
        assert [look[0].used.value for look in found] == [
            index * GIB for index in range(1, len(found) + 1)
        ]

    def test_the_end_is_at_once_also_on_an_error(self) -> None:
        """The interval is not waited for."""
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), Sampler(lambda: gpus((1,))) as running:
            raise KeyboardInterrupt
        assert time.monotonic() - began < sampler.INTERVAL_SECONDS / 2
        assert len(running.recording.looks) == 2
        assert not [t for t in threading.enumerate() if t.name == "device sampler"]

    def test_a_long_look_is_not_made_up_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After it, looks go on at their pace."""
        monkeypatch.setattr(sampler, "INTERVAL_SECONDS", 0.05)
        release = threading.Event()
        slow = iter([True])

        def look() -> Devices:
            if next(slow, False):
                release.wait(5)
            return gpus((1,))

        with Sampler(look) as running:
            threading.Timer(0.3, release.set).start()
            eventually(lambda: len(running.recording.looks) >= 4)
        at = [seen.at for seen in running.recording.looks[:-1]]
        assert at[1] - at[0] >= 0.25
        assert min(later - early for early, later in pairwise(at[1:])) > 0.03

    def test_a_look_that_hangs_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A device that never answers does not keep the run from ending."""
        monkeypatch.setattr(sampler, "_PATIENCE_SECONDS", 0.05)
        release = threading.Event()
        began = time.monotonic()
        with Sampler(lambda: gpus((1,)) if release.wait(5) else gpus()) as running:
            pass
        assert time.monotonic() - began < 4
        assert running.recording.most(lambda device: device.used)["devices"].value is None
        release.set()

    def test_a_look_that_breaks_is_an_error(self) -> None:
        """It is in the recording, and no later one is lost by it."""
        faults = iter([OSError("gone")])

        def look() -> Devices:
            if fault := next(faults, None):
                raise fault
            return gpus((1,))

        with Sampler(look) as running:
            pass
        first, last = running.recording.looks
        assert (first.problem, last.problem) == ("error: OSError: gone", "")
        found = running.recording.most(lambda device: device.used)
        assert found["GPU 0"].problem == "error: OSError: gone"


class TestRecording:
    """What many looks come to."""

    def test_each_device_apart(self) -> None:
        """Least, median and most, and all in one for a row's evidence."""
        found = recording((1, 8), (3, 6), (2, 7))
        assert found.summary(lambda device: device.used) == {
            "GPU 0": {"min": GIB, "median": 2 * GIB, "max": 3 * GIB},
            "GPU 1": {"min": 6 * GIB, "median": 7 * GIB, "max": 8 * GIB},
        }

    def test_one_unread_look_is_no_figure(self) -> None:
        """What was not seen may have been anything."""
        found = recording((1, 8), (None, 6)).most(lambda device: device.used)
        assert (found["GPU 0"].value, found["GPU 0"].problem) == (None, "lost: GPU is lost")
        assert found["GPU 1"].value == 8 * GIB

    def test_a_device_that_is_missing_from_a_look(self) -> None:
        """A worker that died in between has no figure, wherever it is missing."""
        for looks in (((1, 8), (1,), (1, 8)), ((1,), (1, 8)), ((1, 8), (1,))):
            found = recording(*looks).most(lambda device: device.used)
            assert found["GPU 0"].value == GIB
            assert found["GPU 1"].problem == "lost: it was not there at one look"

    def test_nothing_was_seen(self) -> None:
        """No looks, and looks at nothing, say why."""
        nowhere = Recording((Devices((), "NVML", "error: no driver"),))
        empty = recording(())
        for found, problem in (
            (Recording(), Recording.problem),
            (nowhere, "error: no driver"),
            (empty, "error: no device was seen under load"),
        ):
            assert found.least(lambda device: device.used)["devices"].problem == problem

    def test_beyond_a_baseline(self) -> None:
        """What was in use before is taken off every look."""
        found = recording((3, 8), (4, 8)).beyond(gpus((1, 1)))
        assert found.most(lambda device: device.used)["GPU 0"].value == 3 * GIB

    def test_as_json(self) -> None:
        """Columns of equal length, null for what was not read, and nothing that never was."""
        gone: Mapping[int, Mapping[Field, float | None]] = {0: {Field.POWER: None}}
        looks = [replace(gpus((1,), fields=gone), at=100.0), replace(gpus((None,)), at=101.5)]
        for index, look in enumerate(looks):
            fields = dict(look[0].fields)
            del fields[Field.TEMPERATURE]
            looks[index] = replace(look, items=(replace(look[0], fields=fields),))
        found = Recording(looks, origin=99.0).to_json()
        assert found is not None
        assert (found["origin"], found["times"]) == (99.0, [1.0, 2.5])
        assert found["series"]["GPU 0"] == {
            "used_bytes": [GIB, None],
            "utilization": [0.97, 0.97],
            "power": [None, 640],
            "sm_clock": [1755, 1755],
            "clocks_event_reasons": [4, 4],
            "ecc_uncorrected": [0, 0],
            "pcie_generation": [5, 5],
        }
        assert Recording().to_json() is None

    @settings(max_examples=50)
    @given(st.lists(st.lists(st.floats(0, 80), min_size=3, max_size=3), min_size=1, max_size=9))
    def test_the_order_of_least_median_and_most(self, looks: list[list[float]]) -> None:
        """Of every device, whatever was seen."""
        for device in recording(*looks).summary(lambda device: device.used).values():
            assert device["min"] <= device["median"] <= device["max"]
