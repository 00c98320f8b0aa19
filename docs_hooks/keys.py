"""The keys of the spec: type, default and meaning, from the records that read it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs_hooks.markdown import code, table
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.units import Bytes, Duration, Fraction, Percentile, Rate

_HEAD = """# Every key of the spec

[The spec](spec.md) shows them at work. Units are those that it names; any other flag of vLLM stands
under `serve` by its own name. `llmdeploy schema` prints a JSON Schema for editors.

"""
_KINDS: Mapping[Any, str] = {
    Bytes: "size",
    Duration: "time",
    Fraction: "fraction",
    Percentile: "percentile",
    Rate: "rate",
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
}
# Records that somebody rather writes as a word or a number.
_SHORT = {
    "Device": "text",
    "Tokens": "whole number",
    "Arrival": "`poisson`, `constant`",
    "EnvironmentValue": "text",
}


def page() -> str:
    """A table for each record, the spec itself first."""
    return _HEAD + "\n".join(
        f"## {_title(path)}\n\n{_about(record)}\n\n{_keys(record)}" for path, record in records()
    )


def records() -> Iterator[tuple[str, type[Record]]]:
    """Every record of the spec with the key under which it stands first; breadth first."""
    queue: list[tuple[str, type[Record]]] = [("", Spec)]
    seen: set[type[Record]] = {Spec}
    while queue:
        path, record = queue.pop(0)
        yield path, record
        for name, field in record.model_fields.items():
            for inner, is_many in _records_in(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    key = f"{path}.{name}" if path else name
                    queue.append((f"{key}[]" if is_many else key, inner))


def meanings(record: type[Record]) -> dict[str, str]:
    """What the text below each field says of it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, text in pairwise(statements):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(said))),
            ):
                found[name] = " ".join(said.split())
    return found


def _title(path: str) -> str:
    return f"`{path}`" if path else "The whole"


def _about(record: type[Record]) -> str:
    return inspect.getdoc(record) or ""


def _keys(record: type[Record]) -> str:
    said = meanings(record)
    rows = [
        (code(name), kind(field.annotation), _default(field), said[name])
        for name, field in record.model_fields.items()
    ]
    return table(("key", "value", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined or isinstance(value, Record):
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(value) if value not in ("", (), {}) else ""


def kind(annotation: Any) -> str:
    """What may be written there, in words."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, Record):
        short = _SHORT.get(annotation.__name__)
        return f"{short} or mapping" if short else "mapping"
    inner = [one for one in get_args(annotation) if one not in {type(None), ...}]
    name = getattr(annotation, "__origin__", annotation)
    match getattr(name, "__name__", ""):
        case "Literal":
            return ", ".join(code(str(one).lower() if one is True else one) for one in inner)
        case "tuple":
            return f"list of {kind(inner[0])}"
        case "Mapping":
            return "mapping" if inner[1] is Any else f"{kind(inner[1])} by {kind(inner[0])}"
    return " or ".join(kind(one) for one in inner) or "anything"


def _records_in(annotation: Any, is_many: bool = False) -> Iterator[tuple[type[Record], bool]]:
    if inspect.isclass(annotation) and issubclass(annotation, Record):
        yield annotation, is_many
    else:
        is_list = getattr(annotation, "__origin__", None) is tuple
        for inner in get_args(annotation):
            yield from _records_in(inner, is_many or is_list)
