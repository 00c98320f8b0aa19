"""One stand-in for a whole test module; every test finds it as it was at the start."""

from collections.abc import Iterator

import pytest

from . import Standin


@pytest.fixture(scope="module")
def running() -> Iterator[Standin]:
    """The server that the tests of one module share."""
    with Standin() as standin:
        yield standin


@pytest.fixture
def standin(running: Standin) -> Standin:
    """The shared server with its first settings and no memory."""
    running.reset()
    return running
