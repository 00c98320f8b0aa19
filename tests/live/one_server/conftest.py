"""The server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.serving.start import launch
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import TINY


@pytest.fixture(scope="package")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo's deployment; it is gone when the last test of the folder has been run."""
    log = tmp_path_factory.mktemp("tiny") / "server.log"
    server, process = launch(load_spec(TINY), log, lambda _text: None)
    yield server
    assert not process.stop().processes
