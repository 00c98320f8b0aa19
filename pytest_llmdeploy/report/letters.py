"""Texts that a terminal can show: nothing that moves the cursor, nothing that it can't encode."""

from __future__ import annotations

import unicodedata

from wcwidth import strip_sequences

# What the checklist prints beyond ASCII, for terminals that have nothing else.
_IN_ASCII = str.maketrans(
    {
        "≤": "<=",
        "≥": ">=",
        "×": "x",
        "→": "->",
        "…": "...",
        "±": "+-",
        "−": "-",
        "–": "-",
        "—": "-",
        "·": "-",
        "°": "",
        "µ": "u",
        "\u00a0": " ",
        "\u202f": " ",
        "“": '"',
        "”": '"',
        "’": "'",
    }
)
_INVISIBLE = {"Cf", "Cs"}
_BREAKS = {"Cc", "Zl", "Zp"}


def clean(text: str) -> str:
    """The text in one line, without escape sequences, control and invisible characters."""
    return "".join(map(_clean, strip_sequences(text)))


def encodable(text: str, encoding: str) -> str:
    """The text as `encoding` can show it: signs spelled in ASCII where they must be, "?" for the
    rest.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _clean(character: str) -> str:
    category = unicodedata.category(character)
    if category in _INVISIBLE:
        return ""
    return " " if category in _BREAKS else character
