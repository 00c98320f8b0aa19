"""The table and the closing line, as a person reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion
from wcwidth import wcswidth

from pytest_llmdeploy.evidence import Row, Status
from pytest_llmdeploy.report.terminal import (
    ProgressLine,
    _introspection,
    body_lines,
    closing_line,
    table_lines,
)
from tests.report.rows import checklist, row

# What tests see of the world: narrow and wide characters, spaces, and what other tools take for
# line ends.
LETTERS = st.characters(max_codepoint=0x2FF, exclude_categories=["Cc", "Cf"])
TEXT = st.text(LETTERS | st.sampled_from("≤≥×→—模型\u2028\x85\n"), max_size=60)
ROWS = st.lists(
    st.builds(row, st.sampled_from(Status), item=TEXT, requirement=TEXT, result=TEXT), max_size=4
)

TYPICAL = [
    row(),
    row(Status.FAIL, item="TPOT p99, steady", requirement="≤ 10 ms", result="≥ 11.6 ms"),
    row(
        Status.ERROR,
        item="KV capacity",
        requirement="128 × 8,192 tokens",
        result="unsupported: vllm:cache_config_info does not say the size of the KV cache",
    ),
    row(
        Status.INCONCLUSIVE,
        item="TTFT p99.9, a-workload-with-a-long-name",
        requirement="≤ 1,000 ms",
        result="about 412 ms, 0 of 412 over",
    ),
    row(Status.SKIPPED, item="Feasible", requirement="", result="not launched"),
]


def letters(*texts: str) -> Counter[str]:
    """How often each character that is not a space occurs."""
    return Counter(character for text in texts for character in text if not character.isspace())


@given(ROWS, st.integers(60, 200))
def test_the_table_fits_and_is_whole(rows: list[Row], width: int) -> None:
    """No line is wider than the terminal, and every character of every row is in its lines."""
    lines = list(table_lines(rows, width))
    assert all(wcswidth(line) < width for line, _ in lines)
    for index, wanted in enumerate(rows):
        if any(wanted is other for other in rows[:index]):
            continue
        shown = letters(*(line for line, owner in lines if owner is wanted))
        texts = (wanted.item, wanted.requirement, wanted.result, str(wanted.status))
        assert shown == letters(*texts)


HOSTILE = [
    row(item="模型记忆体余量, 稳态", result="\x1b[31mred\x1b[0m and \x1b]0;title\x07back\rover"),
    row(family="latency", item="TTFT\tp99", result="one\ntwo \u202ereversed"),
    row(family="latency", item="한국어 모델", requirement="≤ 1 초", result="ｆｕｌｌ"),
]
MIXED = [
    *TYPICAL,
    row(Status.FAIL, id="a.yaml::devices", family="ranks", item="Devices", hint="add one"),
    row(Status.ERROR, family="ranks", item="Ranks up", result="no server", hint="start it"),
    row(Status.ERROR, family="service", item="Errors", result="no server"),
    row(Status.INVALID, family="latency", result="the client was late", hint="use more cores"),
    row(
        family="latency",
        item="TTFT p50",
        measured=380.0,
        bound=412.0,
        limit=1000.0,
        unit="ms",
        margin=0.588,
        evidence={"source": "the client", "n": 1204},
    ),
]


def columns(line: str) -> int:
    """Where the status begins, in columns of the terminal."""
    before, _, _ = line.rpartition("PASS")
    return wcswidth(before)


def test_wide_and_control_characters_stay_in_their_column(snapshot: SnapshotAssertion) -> None:
    """CJK names take two columns each; what would colour, move or hide is not printed."""
    lines = [line for line, _ in table_lines(HOSTILE, 80)]
    text = "\n".join(lines)
    assert not any(ord(character) < 32 for character in text.replace("\n", ""))
    assert "\u202e" not in text
    assert len({columns(line) for line in lines if line.endswith("PASS")}) == 1
    assert text == snapshot


@pytest.mark.parametrize("verbosity", [0, 1], ids=["plain", "verbose"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_body(width: int, verbosity: int, snapshot: SnapshotAssertion) -> None:
    """Families apart, the table or at 40 columns sentences, then what to change, worst first."""
    made = checklist(rows=MIXED, repairs=["all built-in plan checks pass with serve.x: 1 (was 2)"])
    lines = [line for line, _ in body_lines(made, width, verbosity)]
    assert all(wcswidth(line) < width for line in lines)
    assert "\n".join(lines) == snapshot


@given(ROWS, st.integers(30, 57))
def test_sentences_fit_and_are_whole(rows: list[Row], width: int) -> None:
    """Where columns have no room, nothing is lost either."""
    lines = list(body_lines(checklist(rows=rows), width))
    assert all(wcswidth(line) < width for line, _ in lines)
    shown = letters(*(line for line, _ in lines))
    assert not letters(*(found.result for found in rows)) - shown


def test_no_rows_no_table() -> None:
    """Without rows there is nothing to head."""
    assert list(table_lines([], 80)) == []


@pytest.mark.parametrize("width", [80, 120])
def test_table(width: int, snapshot: SnapshotAssertion) -> None:
    """A typical table on a narrow and on a wide terminal."""
    assert "\n".join(line for line, _ in table_lines(TYPICAL, width)) == snapshot


@pytest.mark.parametrize("problem", ["", "the workers do not answer"])
def test_what_introspection_added(problem: str) -> None:
    """It is said as it was added, and why it was of no use; without it nothing is."""
    added = ["A=1", "--worker-extension-cls=a.B"]
    facts = {"server": {"introspection": {"added": added, "problem": problem}}}
    lines = ["added by --deploy-introspect: A=1 --worker-extension-cls=a.B"]
    lines += [f"--deploy-introspect: {problem}"] if problem else []
    assert list(_introspection(checklist(facts=facts))) == lines
    assert not list(_introspection(checklist(facts={"server": {"introspection": None}})))
    assert not list(_introspection(checklist(facts={"server": None})))


@pytest.mark.parametrize(
    ("statuses", "changes"),
    [
        ([Status.PASS, Status.PASS], {}),
        ([Status.PASS, Status.WAIVED], {"seconds": {"server start": 41.2, "traffic": 30.0}}),
        (list(Status), {"not_run": ["a", "b"]}),
        ([Status.PASS], {"is_plan_only": True, "left_out": ["a", "b", "c"]}),
        ([], {"broken": "a.yaml:1: version: is required"}),
    ],
    ids=["ready", "waived", "every-status", "plan-only", "broken"],
)
def test_closing_line(
    statuses: list[Status], changes: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    """Verdict, counts, what was not run and where the time went."""
    assert closing_line(checklist(*statuses, **changes), 75.0) == snapshot


@dataclass
class Log:
    """A reporter that is no terminal."""

    isatty: bool = False
    lines: list[str] = field(default_factory=list)

    def ensure_newline(self) -> None:
        """Every line is one."""

    def write_line(self, line: str) -> None:
        self.lines.append(line)


def test_a_log_has_a_line_for_each_decision() -> None:
    """Traffic is told when it begins and whenever something is decided, not every second."""
    log, progress = Log(), ProgressLine(cast("pytest.Config", None))
    told = [
        "traffic  steady  0 requests in 0 s   ttft p50 deciding …   ttft p99 deciding …",
        "traffic  steady  90 requests in 1 s   ttft p50 deciding …   ttft p99 deciding …",
        "traffic  steady  120 requests in 2 s   ttft p50 PASS   ttft p99 deciding …",
        "traffic  steady  150 requests in 3 s   ttft p50 PASS   ttft p99 deciding …",
        "traffic  steady  500 requests in 9 s   ttft p50 PASS   ttft p99 FAIL",
    ]
    for text in told:
        progress._show(cast("pytest.TerminalReporter", log), text)
    assert log.lines == [told[0], told[2], told[4]]
