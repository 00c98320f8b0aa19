"""The pages of the reference hold what the code has."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from docs_hooks import checks, fixtures, keys
from docs_hooks.assets import foreign
from docs_hooks.pages import PAGES
from pytest_llmdeploy.checks import Registry
from pytest_llmdeploy.evidence import Status, Verdict
from tests.specs import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_made(path: str) -> None:
    """It has a title, and its links lead to pages that are there or are made."""
    text = PAGES[path]()
    assert text.startswith("# ")
    made = {DOCS / page for page in PAGES}
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        place = (DOCS / path).parent.joinpath(target).resolve()
        assert place.exists() or place in made, target


@pytest.mark.parametrize("path", PAGES)
def test_tables_are_whole(path: str) -> None:
    """Every line of a table has as many cells as the one before it, and no bar in code is told
    with what would escape it elsewhere.
    """
    lines = PAGES[path]().splitlines()
    for line, following in pairwise(lines):
        if line.startswith("|") and following.startswith("|"):
            plain = [re.sub(r"`[^`]*`", "", one) for one in (line, following)]
            bars = [len(re.findall(r"(?<!\\)\|", one)) for one in plain]
            assert bars[0] == bars[1], following
            assert not re.search(r"`[^`]*\\\|[^`]*`", following), following


def test_every_key_has_a_meaning() -> None:
    """Below each field of a record of the spec stands what it is."""
    silent = [
        f"{record.__name__}.{name}"
        for _, record in keys.records()
        for name in record.model_fields.keys() - keys.meanings(record).keys()
    ]
    assert silent == []


def test_keys_are_told_as_they_are_written() -> None:
    """Types and defaults in the words and units of a spec."""
    text = keys.page()
    assert "| `max_duration` | time | `600 s` |" in text
    assert "| `id` | text | must be given |" in text
    assert "| `max_utilization` | fraction |  |" in text
    assert "| `ttft` | time by percentile |" in text
    assert "| `interconnect` | `nvlink` |" in text


def test_every_check_says_when_it_passes() -> None:
    """Its docstring does, and the page has it under its name, with what it reads and its key."""
    text = checks.page()
    for check in Registry():
        assert checks.passes_when(check), check.name
        assert Counter(text.splitlines())[f"### `{check.name}`"] == 1
    headroom = text.partition("### `memory_headroom`")[2].partition("###")[0]
    assert "Every device keeps the headroom that the spec asks for." in headroom
    assert "| key | `require.memory.min_headroom` |" in headroom
    assert "| reads | `server` |" in headroom


def test_when_a_check_applies_is_told() -> None:
    """Not by the name of a function."""
    assert (
        "| key | none: when the devices are GPUs, if the run launched the server |" in checks.page()
    )
    assert "| key | none: always runs |" in checks.page()
    assert "| key | `require.memory.max_utilization`, when there is traffic |" in checks.page()
    for check in Registry():
        assert check.when is None or check.when.__doc__, check.name


def test_every_fixture_is_told_with_its_type() -> None:
    """But for the value of a key, whose type is the check's own."""
    text = fixtures.page()
    lines = text.partition("\n## ")[0].splitlines()
    for name, _ in fixtures.offered():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` | "))
        _, kind, about, *_ = line.removesuffix(" |").split(" | ")
        assert about, name
        assert bool(kind) is (name != "required"), name
    assert "| `headroom` | `Mapping[str, Evidence]` | Bytes left" in text
    assert "| `at(percentile)` | `Quantile` |" in text


def test_what_the_docs_ask_fixtures_for_is_there() -> None:
    """Each `plan.ranks` on the page of own checks is a member that the reference has."""
    held = {one.__name__: one for one in fixtures.HELD}
    text = (DOCS / "how-to" / "own-checks.md").read_text()
    asked = re.findall(r"`(plan|host|server|traffic|stopped)(\[\S+\])?\.(\w+)", text)
    assert len(asked) > 15
    for name, key, member in asked:
        one = held["WorkloadTraffic" if name == "traffic" and key else name.capitalize()]
        told = {cells[0].partition("(")[0].strip("`") for cells in fixtures.answers(one)}
        told |= {cells[0].strip("`") for cells in fixtures.columns(one)}
        assert member in told, (name, member)


def test_every_status_and_verdict_is_explained() -> None:
    """Each has its line in the tables of the page."""
    text = (DOCS / "reference" / "statuses.md").read_text()
    for word in [*Status, *Verdict]:
        assert f"\n| {word} | " in text, word


def test_what_a_page_loads_from_elsewhere_is_seen() -> None:
    """Scripts, styles, fonts and pictures; a link that a reader may follow is none of them."""
    assert foreign('<script src="https://cdn.example/x.js">') == ["https://cdn.example/x.js"]
    assert foreign("<link href=//fonts.example/css rel=stylesheet>") == ["//fonts.example/css"]
    assert foreign("<style>a{src:url(https://f.example/a.woff)}") == ["https://f.example/a.woff"]
    own = '<a href="https://docs.vllm.ai">vLLM</a><script src="../assets/x.js"></script>'
    assert foreign(own + '<link rel="canonical" href="https://example.com/">') == []
