"""The JSON report, from its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from docs_hooks.markdown import code, table

_HEAD = """# The JSON report

`--deploy-report gate.json` writes it, `llmdeploy schema report` prints its JSON Schema. Within a
`schema_version` keys are added, and none is renamed or removed.
[Reports](reports.md) says what the figures mean.

"""
_REFERENCE = "#/$defs/"


def page() -> str:
    """A section for each definition of the schema, with a table where it has keys."""
    text = (files("pytest_llmdeploy.report") / "report.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    sections = {"The whole": schema, **schema["$defs"]}
    return _HEAD + "\n".join(
        f"## {name}\n\n{_about(one)}{_body(one)}" for name, one in sections.items()
    )


def _body(schema: Mapping[str, Any]) -> str:
    return _keys(schema) if "properties" in schema else f"{_kind(schema).capitalize()}\n"


def _about(schema: Mapping[str, Any]) -> str:
    return f"{schema['description']}\n\n" if "description" in schema else ""


def _keys(schema: Mapping[str, Any]) -> str:
    always = schema.get("required", ())
    return table(
        ("key", "value", "always there", "meaning"),
        (
            (code(name), _kind(one), "yes" if name in always else "", one.get("description", ""))
            for name, one in schema["properties"].items()
        ),
    )


def _kind(schema: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_kinds(schema))) or "anything"


def _kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    if reference := schema.get("$ref"):
        name = reference.removeprefix(_REFERENCE)
        yield f"[{name}](#{name})"
    elif "const" in schema:
        yield code(schema["const"])
    elif "enum" in schema:
        yield from map(code, schema["enum"])
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _kinds(one)
    else:
        given = schema.get("type", [])
        for kind in [given] if isinstance(given, str) else given:
            yield from _typed(kind, schema)


def _typed(kind: str, schema: Mapping[str, Any]) -> Iterator[str]:
    if kind == "array" and "items" in schema:
        yield f"list of {_kind(schema['items'])}"
    elif kind == "object" and isinstance(inner := schema.get("additionalProperties"), dict):
        yield f"{_kind(inner)} by name"
    else:
        yield {"array": "list", "object": "mapping", "null": "null"}.get(kind, kind)
