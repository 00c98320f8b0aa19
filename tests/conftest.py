"""What the tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytester forgets the modules that an in-process run imports: importing them here, once, spares
# every such run a second, and third parties a second copy of themselves.
import pytest_llmdeploy.gate
import pytest_llmdeploy.load.runner
import pytest_llmdeploy.report.json_file
import pytest_llmdeploy.serving.start  # noqa: F401
from pytest_llmdeploy.load import floor
from pytest_llmdeploy.probes import patience
from tests.fake_nvml import H100, FakeNvml, build
from tests.standin import Standin


@pytest.fixture(scope="session", autouse=True)
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Launches of the tests are recorded, and devices locked, where no other run looks."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runtime")
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder / "llmdeploy"


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


@pytest.fixture
def url(standin: Standin) -> str:
    """Where it is."""
    return standin.url


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVML, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("the fake is compiled with cc")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """Eight healthy H100s, for other processes."""
    fake = FakeNvml(nvml_library, tmp_path / "machine")
    fake.write(H100)
    return fake


@pytest.fixture
def machine(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """The same in this process."""
    monkeypatch.setenv("FAKE_NVML", str(fake.state))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake.load()
    yield fake
    fake.write(H100)
    for thread in patience._hanging.values():
        thread.join()


@pytest.fixture(autouse=True)
def at_a_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is compared as a person sees it: pytest does not shorten its summary under CI."""
    for variable in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def quickly_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a stand-in have limits far above any floor: a short look at the client will do."""
    monkeypatch.setattr(floor, "_SECONDS", 0.1)
