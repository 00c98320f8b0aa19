"""The page of HTML, as text; in a browser it is tested in tests/browser."""

from __future__ import annotations

import pytest

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.report import Checklist, files
from pytest_llmdeploy.report.html import render
from tests.browser.reports import HOSTILE, loaded
from tests.plan.deployments import made
from tests.report.rows import checklist, full_checklist
from tests.specs import write_spec


@pytest.mark.parametrize(
    ("made_of", "figures"),
    [
        (full_checklist(), 3),
        (checklist(), 0),
        (checklist(broken="a.yaml:1: version: is required"), 0),
        (checklist(facts={"plan": plan(made(parallel={"tensor": 3})).to_json()}), 0),
        (checklist(facts={"plan": plan(made(model={"id": "unknown/model"})).to_json()}), 0),
        (checklist(facts={"traffic": {"steady": {"invalid": ["late"], "requests": None}}}), 0),
    ],
    ids=["full", "empty", "broken", "infeasible", "unknown", "invalid"],
)
def test_whatever_became_of_a_spec(made_of: Checklist, figures: int) -> None:
    """There is a page with the verdict, and a plot for what is known."""
    text = render([made_of])
    assert f">{made_of.verdict}</p>" in text
    assert text.count("<figure>") == figures


def test_hostile_texts_are_text() -> None:
    """Neither markup nor control characters get into the page."""
    text = render(loaded())
    assert HOSTILE not in text
    assert "<img" not in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert text.count("</script>") == 1


def test_without_the_extra_nothing_is_launched(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usage error says what to install."""
    write_spec(pytester.path / "s.yaml")
    monkeypatch.setattr(files, "find_spec", lambda _name: None)
    result = pytester.runpytest("--deploy-spec=s.yaml", "--deploy-report=out.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*out.html: pip install 'pytest-llmdeploy[[]report[]]' first"])
