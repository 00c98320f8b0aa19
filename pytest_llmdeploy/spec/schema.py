"""The JSON Schema of the spec, for editors; shipped as spec.schema.json."""

from __future__ import annotations

from typing import Any

from pytest_llmdeploy.facts import Flag, vllm_flags
from pytest_llmdeploy.spec.model import Spec

# Records that may also be written as one word or number.
_SHORT_FORMS: dict[str, list[dict[str, Any]]] = {
    "Device": [{"type": "string", "examples": ["H100-SXM-80GB", "cpu"]}],
    "Tokens": [{"type": "integer", "minimum": 1}],
    "Arrival": [{"enum": ["poisson", "constant"]}],
    "EnvironmentValue": [{"type": ["string", "number"]}],
}

_PART = "PartOf"


def spec_schema() -> dict[str, Any]:
    """The schema of version 1 (JSON Schema 2020-12)."""
    schema = Spec.model_json_schema()
    definitions = schema["$defs"]
    for name, short in _SHORT_FORMS.items():
        long = definitions[name]
        definitions[name] = {
            "title": name,
            "description": long.get("description", ""),
            "anyOf": [*short, {**long, "title": f"{name} in full"}],
        }
    definitions["Workload"]["anyOf"] = [{"required": ["input_tokens"]}, {"required": ["mix"]}]
    serve = definitions["Serve"]
    serve["additionalProperties"] = False
    for name, flag in vllm_flags().items():
        serve["properties"].setdefault(name, _flag_schema(flag))
    limits = definitions["WorkloadRequire"]["properties"]
    limits["prefill"], limits["decode"] = limits["ttft"], limits["tpot"]
    whole = {key: value for key, value in schema.items() if key != "$defs"}
    parts = {name: _part(definition) for name, definition in definitions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-llmdeploy spec, version 1",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": _part(whole),
        "else": whole,
        "$defs": {**definitions, **{_PART + name: part for name, part in parts.items()}},
    }


def _part(schema: Any) -> Any:
    """What a file that extends others may say of `schema`: a part of it, and null to remove what a
    base says.
    """
    if isinstance(schema, list):
        return [_part(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    part = {key: _part(value) for key, value in schema.items() if key not in {"required", "$ref"}}
    if reference := schema.get("$ref"):
        part["$ref"] = reference.replace("#/$defs/", f"#/$defs/{_PART}")
    if (properties := part.get("properties")) is not None:
        part["properties"] = {
            name: {"anyOf": [one, {"type": "null"}]} if one else one
            for name, one in properties.items()
        }
    return part


def _flag_schema(flag: Flag) -> dict[str, Any]:
    if flag.kind in {"boolean", "switch"}:
        return {"type": "boolean"}
    return {"enum": list(flag.choices)} if flag.choices else {}
