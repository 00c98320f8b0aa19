"""Annotations for GitHub Actions: what did not pass, at the line of the spec that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmdeploy.evidence import Row, Status

# GitHub shows no more of a kind in one step.
_SHOWN = 10
_ERRORS = {Status.FAIL, Status.ERROR}


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A workflow command: `kind` is error or warning, `file` is from the repository's root, `line`
    from 1.
    """

    kind: str
    file: str
    line: int
    title: str
    message: str

    def __str__(self) -> str:
        place = f"file={_property(self.file)},line={self.line},title={_property(self.title)}"
        return f"::{self.kind} {place}::{_data(self.message)}"


def of_row(row: Row, file: str, line: int) -> Annotation:
    """The annotation of a row that is not green."""
    required = f", required: {row.requirement}" if row.requirement else ""
    hint = f"\n{row.hint}" if row.hint else ""
    return Annotation(
        kind="error" if row.status in _ERRORS else "warning",
        file=file,
        line=line,
        title=f"{row.status}: {row.item}",
        message=f"{row.result}{required}{hint}",
    )


def commands(annotations: Sequence[Annotation]) -> Iterator[str]:
    """The lines to print: of each kind as many as GitHub shows, the last saying how many more."""
    for kind in ("error", "warning"):
        found = [annotation for annotation in annotations if annotation.kind == kind]
        if len(found) <= _SHOWN:
            yield from map(str, found)
            continue
        kept = found[: _SHOWN - 1]
        yield from map(str, kept)
        yield f"::{kind}::{_data(f'{len(found) - len(kept)} more: see the checklist')}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
