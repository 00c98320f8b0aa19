"""One Chromium for the folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from pytest_llmdeploy.report.html import render
from tests.browser.reports import loaded
from tests.specs import REPOSITORY

# The rest keep it from looking for its own services, which would not be requests of the page.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Skips where there is no Chromium; in CI that is an error."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        assert not os.environ.get("CI"), "chromium and chromedriver are not on the PATH"
        pytest.skip("chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run without a server, on a spec of the repository."""
    path = tmp_path_factory.mktemp("planned") / "gate.html"
    spec = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"
    options = [f"--deploy-report={path}", f"--deploy-spec={spec}", "--deploy-plan-only", "-q"]
    found = pytest.main(["-pno:cacheprovider", f"--rootdir={REPOSITORY}", "-c/dev/null", *options])
    assert found == pytest.ExitCode.OK
    return path


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with traffic, beside a spec that is broken."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(loaded()), encoding="utf-8")
    return path
