"""Annotations for GitHub Actions."""

from __future__ import annotations

import pytest

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.report.annotations import Annotation, commands, of_row
from tests.gate_runs import run
from tests.report.rows import row
from tests.specs import write_spec


def made(kind: str, count: int) -> list[Annotation]:
    return [
        Annotation(kind=kind, file="a.yaml", line=n + 1, title="T", message="m")
        for n in range(count)
    ]


def test_escapes() -> None:
    """As GitHub's toolkit does: of a message %, CR and LF, of a property colon and comma too."""
    found = Annotation(
        kind="error", file="a,b.yaml", line=3, title="x: 5 %", message="5 %:\r\n a,b"
    )
    assert str(found) == ("::error file=a%2Cb.yaml,line=3,title=x%3A 5 %25::5 %25:%0D%0A a,b")


@pytest.mark.parametrize("status", [s for s in Status if not s.is_green])
def test_kinds(status: Status) -> None:
    """What failed is an error, what is undecided a warning."""
    kind = "error" if status in {Status.FAIL, Status.ERROR} else "warning"
    found = of_row(row(status, hint="do this"), "a.yaml", 3)
    assert found.kind == kind
    assert found.message.endswith("\ndo this")


@pytest.mark.parametrize("count", [0, 1, 10])
def test_all_are_shown(count: int) -> None:
    """Up to ten of a kind."""
    assert len(list(commands(made("error", count)))) == count


def test_more_than_github_shows() -> None:
    """The tenth of a kind says how many there are besides the nine; kinds are counted apart."""
    lines = list(commands([*made("error", 25), *made("warning", 3)]))
    assert len(lines) == 13
    assert lines[9] == "::error::16 more: see the checklist"
    assert all(line.startswith("::warning file=") for line in lines[10:])


def test_in_a_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the line of the key, from the root of the repository; only on GitHub, however quiet."""
    path = write_spec(pytester.path / "specs" / "s.yaml", require={"devices": 3})
    line = path.read_text().splitlines().index("  devices: 3") + 1
    arguments = ["--deploy-spec=specs/s.yaml", "--deploy-plan-only", "--no-summary"]
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    run(pytester, *arguments).stdout.no_fnmatch_line("::*")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    found = [text for text in run(pytester, *arguments).outlines if text.startswith("::")]
    place = f"::error file=specs/s.yaml,line={line},title=FAIL%3A Device count::2 used"
    assert [text[: len(place)] for text in found] == [place]


def test_a_file_that_is_no_spec(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its problems is at its line."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    (pytester.path / "bad.yaml").write_text("version: 1\nmodel: {id: x}\nhardwear: {}\n")
    found = [text for text in run(pytester, "--deploy-spec=bad.yaml").outlines if text[:2] == "::"]
    assert any(
        text.startswith("::error file=bad.yaml,line=3,title=not a valid spec::hardwear: ")
        for text in found
    )
