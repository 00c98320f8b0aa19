"""What the tests of serving share."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.serving.survivors import Holder, hold


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """A process that has launched a server with a family."""
    found = hold(tmp_path / "server.log")
    yield found
    found.process.kill()
    found.process.wait()
    for pid in (found.supervisor, *found.pids):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
