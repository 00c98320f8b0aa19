"""What a run shows on the terminal."""

from __future__ import annotations

import pytest

from tests.gate_runs import QUICK, own_checks, report, run
from tests.specs import write_spec


def test_a_plan_that_fails_says_what_would_mend_it(pytester: pytest.Pytester) -> None:
    """Below the hints, and in the report; a plan that passes has no such line."""
    cache = {"concurrent_sequences": 300, "tokens_per_sequence": 512}
    write_spec(pytester.path / "s.yaml", require={"kv_cache": cache})
    result, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    assert any("pass with serve.kv_cache_memory_bytes" in text for text in entry["repairs"])
    result.stdout.fnmatch_lines(["  → all built-in plan checks pass with *"])
    write_spec(pytester.path / "s.yaml")
    _, entry = report(pytester, "--deploy-spec", "s.yaml", "--deploy-plan-only")
    assert entry["repairs"] == []


def test_the_stages_of_the_start_are_told(pytester: pytest.Pytester, url: str) -> None:
    """Who waits for a server sees how far it is; -q is quiet."""
    write_spec(pytester.path / "s.yaml")
    arguments = ["s.yaml::model_served", "--deploy-url", url]
    loud = run(pytester, *arguments)
    loud.stdout.fnmatch_lines(["server   healthy after*", "server   first completion after*"])
    run(pytester, *arguments, "-q").stdout.no_fnmatch_line("server   *")


OWN = """
@check("Fits", hint="make it smaller → 1")
def fits(expect): expect(2).at_most(1)
@check("Names of 模型 …", require="team.names")
def named(required: int, expect): expect(1).at_most(required)
"""


def failing(pytester: pytest.Pytester) -> list[str]:
    """The arguments of a run in which one row fails."""
    spec = own_checks(pytester, OWN, require={"team": {"names": 2}})
    return [f"--deploy-spec={spec}", "--deploy-plan-only"]


def closing(result: pytest.RunResult) -> str:
    """The one line with the verdict."""
    (line,) = [text for text in result.outlines if text.startswith("NOT READY: ")]
    return line


def test_the_plan_is_told_before_the_server(pytester: pytest.Pytester, url: str) -> None:
    """How many checks there were and how long they took; then the stages of the server."""
    write_spec(pytester.path / "s.yaml")
    result = run(pytester, "s.yaml", "--deploy-url", url, "-m", "plan or live")
    result.stdout.fnmatch_lines(["plan     2 checks, *.* s", "server   healthy after*"])


def test_a_plan_that_fails_is_told(pytester: pytest.Pytester) -> None:
    """With how many rows did not pass."""
    result = run(pytester, *failing(pytester))
    result.stdout.fnmatch_lines(["plan     4 checks, 1 did not pass, *.* s"])


def test_what_did_not_pass_is_the_last_thing_before_the_verdict(pytester: pytest.Pytester) -> None:
    """The row, what was required and the hint, below the table; then one line."""
    result = run(pytester, *failing(pytester))
    result.stdout.fnmatch_lines(
        [
            "What to change, worst first:",
            "  FAIL  Fits: 2, required: ≤ 1",
            "    → make it smaller → 1",
            "NOT READY: 1 failed, 3 passed, 4 live checks left out in * s",
        ],
        consecutive=True,
    )


@pytest.mark.parametrize(
    ("option", "has_plan", "has_table", "has_verdict"),
    [
        ("-q", False, True, True),
        ("-qq", False, False, True),
        ("-qqq", False, False, False),
        ("--no-summary", True, False, False),
        ("-v", True, True, True),
    ],
)
def test_how_much_is_said(
    pytester: pytest.Pytester, option: str, *, has_plan: bool, has_table: bool, has_verdict: bool
) -> None:
    """-q leaves out what goes on, -qq the table as well, --no-summary everything at the end."""
    text = run(pytester, *failing(pytester), option).stdout.str()
    assert ("plan     4 checks" in text) is has_plan
    assert ("checklist: s" in text) is has_table
    assert ("NOT READY: 1 failed" in text) is has_verdict
    assert ("    read: given by the check; measured 2; limit 1" in text) is (option == "-v")


def test_ci_shortens_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checklist is the same one under CI."""
    arguments = failing(pytester)
    at_a_desk = run(pytester, *arguments).outlines
    monkeypatch.setenv("CI", "1")
    under_ci = run(pytester, *arguments).outlines
    head = next(line for line in at_a_desk if line.startswith("Check  "))
    table = at_a_desk[at_a_desk.index(head) :]
    length = next(index for index, line in enumerate(table) if line.startswith("NOT READY"))
    start = under_ci.index(head)
    assert under_ci[start : start + length] == table[:length]


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["PYTHONIOENCODING", "LC_ALL"],
)
def test_a_terminal_without_unicode(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Signs are spelled, in the failures and in the checklist; nothing breaks off."""
    arguments = failing(pytester)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = pytester.runpytest_subprocess(*QUICK, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert text.isascii()
    assert "UnicodeEncodeError" not in text + result.stderr.str()
    assert "\\u" not in text
    result.stdout.fnmatch_lines(
        [
            "  required: <= 1",
            "Names of ?? ...  <= 2 *PASS",
            "  FAIL  Fits: 2, required: <= 1",
            "    -> make it smaller -> 1",
            "NOT READY: *",
        ]
    )


@pytest.mark.parametrize(
    ("option", "variables", "is_coloured"),
    [
        ("--color=yes", {}, True),
        ("--color=no", {}, False),
        ("--color=auto", {"FORCE_COLOR": "1"}, True),
        ("--color=auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_colour(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    variables: dict[str, str],
    *,
    is_coloured: bool,
) -> None:
    """By status, and only where it is wanted."""
    for name in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = run(pytester, *failing(pytester), option).stdout.str()
    assert ("\x1b[31m\x1b[1mFits" in text) is is_coloured
    assert ("\x1b[31m\x1b[1mNOT READY: " in text) is is_coloured
    assert is_coloured or "\x1b" not in text


@pytest.mark.parametrize(("width", "first"), [(40, "PASS  Feasible: "), (200, "Check  ")])
def test_the_width_of_the_terminal(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, width: int, first: str
) -> None:
    """Where four columns have no room, rows are sentences; where there is much, nothing wraps."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(pytester, *failing(pytester)).outlines
    start = next(index for index, line in enumerate(lines) if "checklist: s" in line)
    assert lines[start + 1].startswith(first)
    body = lines[start : lines.index("What to change, worst first:")]
    assert all(len(line) <= width for line in body)
