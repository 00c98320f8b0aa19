"""Whatever is in the file, the loader answers soon: with a spec or with a SpecError.

530 texts here; `make fuzz` tries 15,000.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from pytest_llmdeploy.spec import SpecError

from .documents import SMALLEST
from .fuzz import (
    answered,
    any_bytes,
    bases,
    extending,
    mutated,
    piece_replaced,
    pieces_of_yaml,
    value_replaced,
)

thoroughly = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@thoroughly
@given(raw=any_bytes())
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    """Bytes that are no spec are a SpecError."""
    assert isinstance(answered(tmp_path, raw), SpecError)


@thoroughly
@given(text=pieces_of_yaml())
def test_any_pieces_of_yaml(tmp_path: Path, text: str) -> None:
    """YAML's own words in any order, after a valid beginning."""
    answered(tmp_path, text)


@thoroughly
@given(text=value_replaced())
def test_a_value_of_the_example_replaced(tmp_path: Path, text: str) -> None:
    """The example with one value that is something else."""
    answered(tmp_path, text)


@thoroughly
@given(text=piece_replaced())
def test_a_piece_of_the_example_replaced(tmp_path: Path, text: str) -> None:
    """The example with a piece cut out and something put in."""
    answered(tmp_path, text)


@thoroughly
@given(text=mutated())
def test_a_spec_with_one_mutation(tmp_path: Path, text: str) -> None:
    """A key renamed, doubled or gone; a value of another type, size or depth; an anchor."""
    answered(tmp_path, text)


@settings(thoroughly, max_examples=30)
@given(text=extending())
def test_a_spec_over_any_bases(tmp_path: Path, text: str) -> None:
    """Bases that are long, odd, not there or go round; and anything over them."""
    bases(tmp_path)
    answered(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000,
     SMALLEST + "name: " + "1" * 500_000 + "x", SMALLEST + "name: " + "1_" * 250_000,
     SMALLEST + "? " + "xab" * 300_000 + "\n: 1", SMALLEST + "serve:\n  ? " + "max_" * 200_000,
     SMALLEST + "checks: [" + "1," * 490_000 + "]",
     SMALLEST + "".join(f"k{number}: 1\n" for number in range(80_000)),
     SMALLEST + "name: >=" + "9" * 900_000, SMALLEST + "name: " + "\\" * 900_000],
    ids=["[", "{", "-", "?", "digits", "underscores", "long key", "long flag", "list", "keys",
         "version", "backslashes"],
)  # fmt: skip
def test_what_is_large_or_deep(tmp_path: Path, text: str) -> None:
    """Depth and length cost no time."""
    answered(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [SMALLEST.replace("org/model", "x" * 5000), SMALLEST.replace("org/model", "/nowhere/" * 900)],
    ids=["long", "deep"],
)
def test_what_can_not_be_a_file(tmp_path: Path, text: str) -> None:
    """A model whose name no file can have is on no disk."""
    assert not isinstance(answered(tmp_path, text), SpecError)
