"""What a way of `llmdeploy init` finds out: the beginning of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Draft:
    """The `data` of a spec; `about` says where it comes from, `notes` what is not in it or means
    something else there. By section: `remarks` are sentences above it, `proposals` keys below it
    that nobody has said.
    """

    data: Mapping[str, Any]
    about: str
    notes: Sequence[str] = ()
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    proposals: Mapping[str, Sequence[str]] = field(default_factory=dict)
