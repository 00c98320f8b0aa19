"""Every command and snippet of README, docs and examples runs, and prints what they say.

A block with a title is a file that is written; a console block is a session, whose output is
compared but for times. `UPDATE_DOCS=1 pytest tests/test_docs.py` writes the real output into them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs_hooks.pages import PAGES
from tests.docs_blocks import BLOCK, DOCUMENTS, IDS, TITLE
from tests.example import EXAMPLE, installed
from tests.specs import REPOSITORY

VARIABLE = re.compile(r"\b\d+(\.\d+)? s\b|in \d+\.\d+s|\(\d+:\d\d:\d\d\)|={2,}|-{4,}")


def session(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def run(command: str, folder: Path) -> str:
    """What a command prints in a terminal of 80 columns."""
    if command.startswith("make "):
        command, folder = f"make --dry-run {command[5:]} >/dev/null", REPOSITORY
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    addopts = "-pno:hypothesispytest -pno:cacheprovider"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "PYTEST_ADDOPTS": addopts}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.replace(str(folder), "~")


def comparable(text: str) -> str:
    return "\n".join(VARIABLE.sub("…", line).rstrip() for line in text.strip().splitlines())


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_what_a_document_shows_is_what_happens(
    document: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files are written and commands are run in the order of the text, in one folder; those of
    the example package in its own, where it is installed.
    """
    if document.parent == EXAMPLE:
        shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
        monkeypatch.setenv("PYTHONPATH", installed(tmp_path_factory.mktemp("installed")))
    else:
        shutil.copytree(REPOSITORY / "specs", tmp_path / "specs")
    text = document.read_text()
    real = text
    for match in BLOCK.finditer(text):
        language, options, body = match.groups()
        if title := TITLE.search(options):
            path = tmp_path / title[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)
        if language == "console":
            shown = [(command, run(command, tmp_path)) for command, _ in session(body)]
            printed = "".join(
                f"$ {command}\n{output.strip()}\n" if output.strip() else f"$ {command}\n"
                for command, output in shown
            )
            real = real.replace(
                match[0], f"```{language}{' ' + options if options else ''}\n{printed}```"
            )
    if "UPDATE_DOCS" in os.environ:
        document.write_text(real)
    assert comparable(text) == comparable(real)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_no_block_escapes_the_test(document: Path) -> None:
    """A block is a file with a title, a session, or marked as mere illustration."""
    for language, options, _ in BLOCK.findall(document.read_text()):
        assert language == "console" or "title=" in options or (language == "text" and options), (
            language,
            options,
        )


def test_the_demo_in_the_readme_lists_every_row() -> None:
    """The table in the README has the rows that the demo has."""
    from pytest_llmdeploy.checks import Registry, requirements  # noqa: PLC0415
    from pytest_llmdeploy.spec import load_spec  # noqa: PLC0415

    spec = load_spec(REPOSITORY / "specs" / "tiny-llama-cpu.yaml")
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text())
    table = next(body for language, options, body in blocks if options == "demo")
    first_words = [line.split("  ")[0].strip() for line in table.splitlines()]
    items = [requirement.item for requirement in requirements(spec, Registry())]
    for item in items:
        # A long name is continued in the next line.
        assert any(item == words or item.startswith(f"{words} ") for words in first_words if words)
    assert f"READY: {len(items)} passed" in table


def test_the_docs_say_how_many_requests_a_percentile_takes() -> None:
    """The figures in the text are the test's own."""
    from pytest_llmdeploy.verdict import Rule  # noqa: PLC0415

    fractions = (0.5, 0.9, 0.99, 0.999)
    takes = [Rule(p).requests_to_pass() for p in fractions]
    text = " ".join((REPOSITORY / "docs" / "reference" / "spec.md").read_text().split())
    told = "p50 takes {} requests, p90 {}, p99 {} and p99.9 {:,} at 95 %".format(*takes)
    assert told in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    """No link to a file that is neither there nor made when the site is built."""
    made = {REPOSITORY / "docs" / page for page in PAGES}
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
        path = (document.parent / target).resolve()
        assert path.exists() or path in made, target
