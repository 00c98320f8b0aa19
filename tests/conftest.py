"""What the tests share."""

from collections.abc import Iterator

import pytest

# pytester forgets the modules that an in-process run imports: importing them here, once, spares
# every such run a second, and third parties a second copy of themselves.
import pytest_llmdeploy.gate
import pytest_llmdeploy.load.runner
import pytest_llmdeploy.report.json_file
import pytest_llmdeploy.serving.start  # noqa: F401
from pytest_llmdeploy.load import floor
from tests.standin import Standin


@pytest.fixture(scope="module")
def running() -> Iterator[Standin]:
    """The stand-in that the tests of one module share."""
    with Standin() as standin:
        yield standin


@pytest.fixture
def standin(running: Standin) -> Standin:
    """The shared stand-in with its first settings and no memory."""
    running.reset()
    return running


@pytest.fixture(autouse=True)
def at_a_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is compared as a person sees it: pytest does not shorten its summary under CI."""
    for variable in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def quickly_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a stand-in have limits far above any floor: a short look at the client will do."""
    monkeypatch.setattr(floor, "_SECONDS", 0.1)
