"""Why servers of the real vLLM died, from what they wrote.

Each file of `causes/` is what a vLLM 0.32 writes that fails for the cause of its name: recorded
where the CPU build does so, put together from its sources where only a GPU would.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.serving import diagnose
from pytest_llmdeploy.serving.diagnosis import is_hopeless, known_causes

RECORDED = {path.stem: path.read_text() for path in Path(__file__).parent.glob("causes/*.log")}
ENGINE = "(EngineCore pid=71) ERROR 11-23 03:38:07 [core.py:900] "
API = "(APIServer pid=70) "
# Of a server that became ready in spite of it.
WARNINGS = "\n".join(
    API + f"WARNING 11-23 03:38:07 [{text}"
    for text in (
        "model.py:2660] User-specified max_model_len (4) is greater than the derived max_model_len",
        "parallel.py:746] Address already in use. Retrying with a new port.",
        "config.py:1374] Could not retrieve safetensors metadata for tiny: LocalEntryNotFoundError",
    )
)


def causes_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_death(name: str, snapshot: SnapshotAssertion) -> None:
    """The cause, the decisive line wherever it is, and what to change."""
    found = diagnose(RECORDED[name], 1)
    assert found.name == causes_of(name)
    assert {"cause": found.cause, "line": found.line, "hint": found.hint} == snapshot


def test_the_decisive_line_is_seldom_the_last_one() -> None:
    """Of a log's last line alone, hardly anything can be told."""
    last = {name: text.splitlines()[-1] for name, text in RECORDED.items()}
    told = {name for name in last if diagnose(last[name], 1).name == causes_of(name)}
    assert len(told) < len(RECORDED) / 3


def test_every_known_cause_is_recorded() -> None:
    """No entry of the catalogue is without a text that it was made for."""
    assert set(map(causes_of, RECORDED)) == set(known_causes())


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_start_is_given_up_at_once(name: str) -> None:
    """Where the cause is one that no server survives, its line is enough."""
    assert is_hopeless(RECORDED[name]) or not known_causes()[causes_of(name)].fatal


def test_a_warning_ends_no_start() -> None:
    """In the same words as an error, it neither gives a start up nor explains a death."""
    assert not is_hopeless(WARNINGS)
    assert diagnose(WARNINGS, 3).name == ""
    assert diagnose(WARNINGS, 3).cause == "the server ended with exit code 3"
    torch = "[W1128 07:32:17.833123910 utils.cpp:68] Warning: RuntimeError: not this one\n"
    assert diagnose(torch + WARNINGS + "\n  lookup(value)\n", -9) == diagnose("", -9)


def test_the_root_of_several() -> None:
    """A worker that dies of a known cause takes the engine along: the first one is the cause."""
    text = "".join(RECORDED[name] for name in ("engine", "worker", "kv-cache-none"))
    assert diagnose(text, 1).cause == "no memory is left for the KV cache"


def test_an_unknown_error_is_quoted() -> None:
    """The first error that says something is shown, and how the process ended."""
    found = diagnose(ENGINE + "KeyError: 'lm_head'\nbye", 1)
    assert str(found) == "the server ended with exit code 1: KeyError: 'lm_head'"
    found = diagnose("error: argument --compilation-config/-cc: 1 validation error\nbye\n", 2)
    assert found.cause == "the server ended with exit code 2"


@pytest.mark.parametrize("prefix", ["", "(EngineCore pid=7) ERROR 11-28 10:11:12 [core.py:710] "])
def test_source_that_a_traceback_quotes_is_no_error(prefix: str) -> None:
    """Newer Pythons quote all lines of a statement, and that of `-c`."""
    quoted = "raise ValueError('No available memory for the cache blocks')"
    log = [
        "Traceback (most recent call last):",
        '  File "core.py", line 1, in run',
        f"    {quoted}",
        "    ^^^^^^^^^",
        "ValueError: No available memory for the cache blocks",
    ]
    found = diagnose("\n".join(prefix + line for line in log), 1)
    assert found.line == "ValueError: No available memory for the cache blocks"
    assert diagnose("\n".join(prefix + line for line in log[:4]), 1).name == ""


def test_colours_are_no_part_of_a_line() -> None:
    """Where a log is coloured, its lines are found and shown without."""
    found = diagnose(f"\x1b[0;36m{ENGINE}ValueError: No available memory for the cache blocks", 1)
    assert found.line == "ValueError: No available memory for the cache blocks"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "the server ended with exit code 0: bye"),
        (-9, "the server was ended by SIGKILL"),
        (None, "the server does not answer: bye"),
    ],
)
def test_a_log_without_an_error(code: int | None, text: str) -> None:
    """Then the last line has to do."""
    assert str(diagnose("hello\n\n  bye  \n\n", code)) == text


def test_an_empty_log() -> None:
    """Nothing written is no reason to fail at saying so."""
    assert str(diagnose("", -11)) == "the server was ended by SIGSEGV"


def test_a_long_line_is_cut() -> None:
    """Nobody reads a line of a megabyte."""
    assert len(diagnose("ValueError: " + "x" * 10**6, 1).line) == 300


def test_what_was_swept_explains_nothing() -> None:
    """A server that was killed did not die of its workers, which were ended after it."""
    log = "ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: -15), shutting down"
    assert diagnose(log, -9).cause == "the server was ended by SIGKILL"
    assert diagnose(log, 0).cause == "a worker process died: it was killed"
