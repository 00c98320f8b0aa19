"""What a run knows of its specs, for those who report on it."""

from pathlib import Path

import pytest

from pytest_llmdeploy.checks import Registry
from pytest_llmdeploy.session import Options, Session
from tests.specs import spec_text


def test_a_page_has_every_file_of_a_spec(tmp_path: Path) -> None:
    """The bases first, each with the rows that its lines call for."""
    (tmp_path / "base.yaml").write_text(spec_text(require={"devices": 2, "plan_agrees": "5%"}))
    top = tmp_path / "top.yaml"
    top.write_text("version: 1\nextends: base.yaml\nrequire:\n  devices: 2\n")
    session = Session(
        root=tmp_path,
        paths=[top],
        options=Options(plan_only=True, reports=[tmp_path / "page.html"]),
        registry=Registry(),
        import_module=lambda path: __import__(path.stem),
        log_folder=tmp_path,
    )
    base, own = session.checklists()[0].context.texts
    assert (base.path, own.path) == ("base.yaml", "top.yaml")
    assert own.text == top.read_text()
    assert own.rows == {4: ["top.yaml::device_count"]}
    line = base.text.splitlines().index("  plan_agrees: 5%") + 1
    assert base.rows == {line: ["top.yaml::plan_agrees"]}


def test_a_run_points_at_the_file_that_says_it(pytester: pytest.Pytester) -> None:
    """A row that fails, and a mistake, for what a base says."""
    (pytester.path / "base.yaml").write_text(spec_text(require={"devices": 3}))
    (pytester.path / "top.yaml").write_text("version: 1\nextends: base.yaml\n")
    arguments = ["-p", "no:cacheprovider", "--deploy-plan-only", "-vv"]
    found = pytester.runpytest(*arguments, "top.yaml")
    found.stdout.fnmatch_lines(["top.yaml::device_count <- base.yaml FAILED*"])
    (pytester.path / "base.yaml").write_text("modle: {}\n" + spec_text())
    found = pytester.runpytest(*arguments, "--deploy-spec", "top.yaml")
    found.stdout.fnmatch_lines(["*/base.yaml:1: modle: unknown key: did you mean 'model'?"])
