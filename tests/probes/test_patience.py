"""Waiting for a driver that may never answer."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from pytest_llmdeploy.probes import patience
from pytest_llmdeploy.probes.patience import answers


def test_all_are_heard() -> None:
    """Each answers for itself, in order; one may have nothing to say."""
    assert answers({"a": iter([1, 2]), "b": iter([])}) == {"a": [1, 2], "b": []}


def test_one_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said before is kept; it is asked again only when it came back."""
    monkeypatch.setattr(patience, "SECONDS", 0.1)
    awake = Event()

    def slow() -> Iterator[int]:
        yield 1
        awake.wait()
        yield 2

    assert answers({"a": slow(), "b": iter([3])}) == {"a": [1], "b": [3]}
    assert answers({"a": iter([4])}) == {"a": []}
    awake.set()
    patience._hanging["a"].join()
    assert answers({"a": iter([4])}) == {"a": [4]}


def test_a_fault_is_not_swallowed() -> None:
    """What goes wrong in the thread is raised where it was asked for."""

    def faulty() -> Iterator[int]:
        yield 1
        raise KeyError("b")

    with pytest.raises(KeyError, match="b"):
        answers({"a": faulty()})
