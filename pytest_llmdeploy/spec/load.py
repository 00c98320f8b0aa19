"""From a YAML file to a `Spec`, or to errors that a person can act on."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError

from pytest_llmdeploy.secrets import redact
from pytest_llmdeploy.spec.document import read_document
from pytest_llmdeploy.spec.errors import FaultError, KeyPath, Problem, SpecError, nearest
from pytest_llmdeploy.spec.extends import read_extended
from pytest_llmdeploy.spec.model import Spec
from pytest_llmdeploy.spec.source import Source

_WHAT_IS_ALLOWED = {
    "missing": "is required",
    "string_type": "write a text",
    "int_type": "write a whole number",
    "float_type": "write a number",
    "bool_type": "write true or false",
    "model_type": "write a mapping of keys",
    "model_attributes_type": "write a mapping of keys",
    "mapping_type": "write a mapping of keys",
    "tuple_type": "write a list",
}
_MOST_SHOWN = 20
# Beside `version`: other YAML has that, too.
_TELLING = {"model", "extends"}
# What is found here may be a secret that somebody wrote in the wrong form.
_UNSHOWN = {("serve", "env"), ("serve", "extra_args"), ("attach", "url")}


def load_spec(path: Path) -> Spec:
    """The spec in the file `path`, with what it extends.

    Raises:
        SpecError: with file, line, key, what was found and what is allowed, for every fault.
    """
    document = read_extended(path)
    given = {"name": path.stem, **document.data}
    given["name"] = path.stem if given["name"] == "" else given["name"]
    try:
        spec = Spec.model_validate(given, context={"folder": path.parent})
    except ValidationError as error:
        raise SpecError(list(_problems(document.source, error))) from None
    spec._source = document.source  # noqa: SLF001 - the loader completes the record
    return spec


def looks_like_spec(path: Path) -> bool:
    """Whether the YAML file `path` has the top-level keys of a spec."""
    try:
        data = read_document(path).data
    except SpecError:
        return False
    return isinstance(data, dict) and "version" in data and not data.keys().isdisjoint(_TELLING)


def _problems(source: Source, error: ValidationError) -> Iterator[Problem]:
    faults = error.errors(include_url=False)
    for fault in faults[:_MOST_SHOWN]:
        key = fault["loc"]
        if key not in source.places:
            key = tuple(part for part in key if part != "[key]")
        found = fault.get("ctx", {}).get("error")
        within = found.key if isinstance(found, FaultError) else ()
        yield source.problem((*key, *within), redact(_message(key, fault)))
    if (more := len(faults) - _MOST_SHOWN) > 0:
        yield source.problem((), f"and {more:,} more")


def _message(key: KeyPath, fault: Mapping[str, Any]) -> str:
    kind, found = fault["type"], repr(fault["input"])
    if kind == "extra_forbidden":
        return f"unknown key: {nearest(str(key[-1]), _known_keys(key[:-1]))}"
    if kind == "missing":
        return _WHAT_IS_ALLOWED[kind]
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind == "literal_error":
        expected = fault["ctx"]["expected"]
        return f"found {found}: write {'true' if expected == 'True' else expected}"
    told = _WHAT_IS_ALLOWED.get(kind, fault["msg"])
    return told if key[:2] in _UNSHOWN else f"found {found}: {told}"


def _known_keys(key: KeyPath) -> list[str]:
    """The keys that the mapping at `key` may have."""
    model: Any = Spec
    for part in key:
        # Other parts are places in a list, or keys of a mapping that the user names.
        if field := model.model_fields.get(part):
            model = _record_in(field.annotation) or model
    aliases = (field.validation_alias for field in model.model_fields.values())
    choices = (alias.choices for alias in aliases if isinstance(alias, AliasChoices))
    return sorted({*model.model_fields, *(str(name) for names in choices for name in names)})


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        if found := _record_in(part):
            return found
    return None
