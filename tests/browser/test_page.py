"""The page of HTML in a browser."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.specs import REPOSITORY

IMAGES = REPOSITORY / "docs" / "images"

pytestmark = pytest.mark.browser

_SENT = "Network.requestWillBeSent"


@pytest.fixture(autouse=True)
def opened(browser: Chrome, page: Path) -> None:
    """Fresh for each test; what was logged before is not its own."""
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get("about:blank")
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    browser.get_log("performance")  # type: ignore[no-untyped-call]
    browser.get(page.as_uri())


def shown(browser: Chrome) -> int:
    """How many rows of the first checklist are to be seen."""
    first = browser.find_element(By.CLASS_NAME, "spec-part")
    return sum(r.is_displayed() for r in first.find_elements(By.CSS_SELECTOR, ".rows tr"))


def test_nothing_is_loaded_and_nothing_complains(browser: Chrome, page: Path) -> None:
    """The file itself is the only request, and the console stays empty, hostile texts and all."""
    log: Any = browser.get_log
    messages = [json.loads(entry["message"])["message"] for entry in log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == _SENT]
    assert [url for url in sent if not url.startswith("data:")] == [page.as_uri()]
    assert log("browser") == []
    assert browser.find_elements(By.TAG_NAME, "img") == []


def test_it_is_small_and_opens_at_once(browser: Chrome, page: Path) -> None:
    """At most 3 MB, and loaded within a second."""
    assert page.stat().st_size <= 3_000_000
    timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert 0 < browser.execute_script(timing) <= 1000


def test_the_filter(browser: Chrome) -> None:
    """By status, family and text, alone and together."""
    status, family, *_ = browser.find_elements(By.TAG_NAME, "select")
    text = browser.find_element(By.CSS_SELECTOR, "input")
    assert shown(browser) == 8
    Select(status).select_by_visible_text("PASS")
    assert shown(browser) == 2
    Select(family).select_by_visible_text("latency")
    assert shown(browser) == 1
    text.send_keys("no such row")
    assert shown(browser) == 0
    assert browser.find_element(By.TAG_NAME, "output").text == "0 of 8 rows"


def test_the_keyboard_reaches_everything(browser: Chrome) -> None:
    """Tab goes from what to change over the filter to the evidence of each row; Enter opens it."""
    reached = []
    for _ in range(20):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element)
    tags = [found.tag_name for found in reached]
    links = tags.index("select")
    assert set(tags[:links]) == {"a"}
    assert tags[links : links + 12] == [*["select"] * 2, "input", *["summary"] * 7, "a", "summary"]
    evidence = reached[links + 3]
    evidence.send_keys(Keys.ENTER)
    assert evidence.find_element(By.XPATH, "..").get_attribute("open") is not None


def test_every_plot_says_what_it_shows(browser: Chrome) -> None:
    """In a label, a caption and a table."""
    figures = browser.find_elements(By.TAG_NAME, "figure")
    assert len(figures) == 10
    for figure in figures:
        assert figure.find_element(By.TAG_NAME, "svg").get_attribute("aria-label")
        assert any(map(str.isdigit, figure.find_element(By.TAG_NAME, "figcaption").text))
        assert figure.find_elements(By.CSS_SELECTOR, "details td")


def test_a_row_and_its_line_lead_to_each_other(browser: Chrome) -> None:
    """The links have a target on the page, each of them."""
    links = browser.find_elements(By.CSS_SELECTOR, ".rows a, .spec a")
    assert {link.text for link in links} == {"line 1", "PASS: TTFT p99, steady"}
    for link in links:
        target = link.get_dom_attribute("href") or ""
        assert browser.find_elements(By.CSS_SELECTOR, target)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_both_themes(browser: Chrome, scheme: str) -> None:
    """axe-core finds nothing serious, and the theme is the one that is preferred."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ("255, 255, 255" in ground) == (scheme == "light")
    axe = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    run: Any = browser.execute_script
    found = run(f"{axe}; return axe.run()")
    serious = [v for v in found["violations"] if v["impact"] in {"serious", "critical"}]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in serious] == []


def test_print_shows_every_row(browser: Chrome) -> None:
    """Without the filter, whatever it was set to."""
    browser.find_element(By.CSS_SELECTOR, "input").send_keys("no such row")
    assert shown(browser) == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert shown(browser) == 8
    assert not browser.find_element(By.CLASS_NAME, "filter").is_displayed()


def test_a_run_without_a_server(browser: Chrome, planned: Path) -> None:
    """The page that the plugin itself writes: rows lead to lines of the spec, and back."""
    browser.get(planned.as_uri())
    log: Any = browser.get_log
    assert log("browser") == []
    assert browser.find_element(By.CLASS_NAME, "verdict").text == "PLAN PASSES"
    assert len(browser.find_elements(By.TAG_NAME, "figure")) == 3
    link = browser.find_element(By.PARTIAL_LINK_TEXT, "Memory utilization, planned")
    line = link.find_element(By.XPATH, "..")
    row = browser.find_element(By.CSS_SELECTOR, link.get_dom_attribute("href") or "")
    back = row.find_element(By.PARTIAL_LINK_TEXT, "line ").get_dom_attribute("href")
    assert back == f"#{line.get_dom_attribute('id')}"


@pytest.mark.parametrize(
    ("name", "figure", "height"), [("checklist", None, 900), ("plan", "s0-figure0", 1400)]
)
def test_the_screenshots_of_the_docs(
    browser: Chrome, planned: Path, tmp_path: Path, name: str, figure: str | None, height: int
) -> None:
    """They can be made as they are there; `make screenshots` writes them anew."""
    browser.set_window_size(1200, height)
    browser.get(planned.as_uri())
    if figure:
        browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", figure)
    folder = IMAGES if "UPDATE_DOCS" in os.environ else tmp_path
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    assert browser.save_screenshot(str(path))
    browser.set_window_size(1200, 900)
    for found in (path, IMAGES / path.name):
        width = int.from_bytes(found.read_bytes()[16:20])
        assert width == 1200
        assert found.stat().st_size < 300_000
