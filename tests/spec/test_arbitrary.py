"""Whatever is in the file, the loader answers soon: with a spec or with a SpecError."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.spec import Spec, SpecError

from .documents import SMALLEST, load

EXAMPLE = (Path(__file__).parents[2] / "specs" / "llama3-70b-8xh100.yaml").read_text()
TOKENS = st.sampled_from(
    ["version: 1", "model:", "{id: x}", "workloads:", "- ", "  ", "\n", "[", "]", "{", "}", ":",
     "&a", "*a", "!!str", "? ", "| ", "> ", "'", '"', "#", "---", "...", "%", "1e999", "1_", "012",
     "\x85", "\u2028", "\ufeff", "<<: ", "null", "9" * 4301]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", "null", "-1", "0", "1e999", "1" + "0" * 400, "9" * 5000, "nan", ".inf", "true", "[]", "{}",
     "[[]]", "{a: b}", "'", "&x 1", "*x", "!t 1", "x" * 5000, "1_", "-.5", "\u0661", "8/s", "5%"]
)  # fmt: skip
PLACES = [i for i, line in enumerate(EXAMPLE.splitlines()) if line.strip()]

thoroughly = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def answered(folder: Path, text: str | bytes) -> Spec | SpecError:
    """The spec or the error, which took less than a second of CPU time and says where."""
    started = time.process_time()
    try:
        answer: Spec | SpecError = load(folder, text)
    except SpecError as error:
        answer = error
    assert time.process_time() - started < 1
    assert isinstance(answer, Spec) or min(problem.line for problem in answer.problems) >= 1
    return answer


@thoroughly
@given(raw=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    """Bytes that are no spec are a SpecError."""
    assert isinstance(answered(tmp_path, raw), SpecError)


@thoroughly
@given(tokens=st.lists(TOKENS, max_size=30))
def test_any_pieces_of_yaml(tmp_path: Path, tokens: list[str]) -> None:
    """YAML's own words in any order, after a valid beginning."""
    answered(tmp_path, SMALLEST + "".join(tokens))


@thoroughly
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_value_of_the_example_replaced(tmp_path: Path, place: int, value: str) -> None:
    """The example with one value that is something else."""
    lines = EXAMPLE.splitlines()
    lines[place] = lines[place].partition(":")[0] + ": " + value
    answered(tmp_path, "\n".join(lines))


@thoroughly
@given(start=st.integers(0, len(EXAMPLE)), length=st.integers(0, 40), text=TOKENS | st.text())
def test_a_piece_of_the_example_replaced(
    tmp_path: Path, start: int, length: int, text: str
) -> None:
    """The example with a piece cut out and something put in."""
    answered(tmp_path, EXAMPLE[:start] + text + EXAMPLE[start + length :])


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000,
     SMALLEST + "name: " + "1" * 500_000 + "x", SMALLEST + "name: " + "1_" * 250_000,
     SMALLEST + "? " + "xab" * 300_000 + "\n: 1", SMALLEST + "serve:\n  ? " + "max_" * 200_000],
    ids=["[", "{", "-", "?", "digits", "underscores", "long key", "long flag"],
)  # fmt: skip
def test_what_is_large_or_deep(tmp_path: Path, text: str) -> None:
    """Depth and length cost no time."""
    answered(tmp_path, text)
