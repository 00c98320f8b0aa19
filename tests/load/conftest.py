"""One stand-in for all tests of this room; every test finds it as it was at the start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.standin import Standin


@pytest.fixture(scope="package")
def running() -> Iterator[Standin]:
    with Standin() as standin:
        yield standin


@pytest.fixture
def standin(running: Standin) -> Standin:
    running.reset()
    return running
