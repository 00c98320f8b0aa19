"""Texts for terminals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmdeploy.report.letters import clean, encodable

SPELLED = "≤ 8 GiB ≥ 2 × 4 → done … ± 5 − 1 – 2 — 3"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        (SPELLED, "utf-8", SPELLED),
        (SPELLED, "ascii", "<= 8 GiB >= 2 x 4 -> done ... +- 5 - 1 - 2 - 3"),
        ("2 × 4", "latin-1", "2 × 4"),
        ("模型", "ascii", "??"),
    ],
)
def test_encodable(text: str, encoding: str, shown: str) -> None:
    """A sign is spelled only where the terminal has none."""
    assert encodable(text, encoding) == shown


@given(st.text(), st.sampled_from(["ascii", "latin-1", "cp1252"]))
def test_everything_is_encodable(text: str, encoding: str) -> None:
    """Whatever is found, it never raises."""
    encodable(clean(text), encoding).encode(encoding)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\r\nb\tc", "a  b c"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\u200b\u202eb", "ab"),
        ("plain ≤", "plain ≤"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    """One line, in which nothing moves the cursor or hides."""
    assert clean(text) == shown
