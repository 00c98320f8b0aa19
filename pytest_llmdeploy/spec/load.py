"""From a YAML file to a `Spec`, or to errors that a person can act on."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError

from pytest_llmdeploy.secrets import redact
from pytest_llmdeploy.spec.document import read_document
from pytest_llmdeploy.spec.errors import FaultError, KeyPath, Problem, SpecError, nearest, written
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
    "greater_than_equal": "write {ge:g} or more",
    "greater_than": "write more than {gt:g}",
    "less_than_equal": "write {le:g} or less",
    "string_too_short": "write a text that is not empty",
    "too_long": "write at most {max_length:,} entries",
    "dict_type": "write a mapping of keys",
    "finite_number": "write a finite number",
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
    if fault["type"] == "extra_forbidden":
        return f"unknown key: {nearest(str(key[-1]), _known_keys(key[:-1]))}"
    return fault_text(fault, is_shown=key[:2] not in _UNSHOWN)


def fault_text(fault: Mapping[str, Any], *, is_shown: bool = True) -> str:
    """What was found, if that is to be shown, and what is allowed, of a fault of pydantic's."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return _WHAT_IS_ALLOWED[kind]
    allowed: str = _WHAT_IS_ALLOWED.get(kind, fault["msg"]).format(**context)
    if kind == "literal_error":
        allowed = f"write {'true' if context['expected'] == 'True' else context['expected']}"
    if not is_shown:
        return allowed
    found = f"{len(fault['input']):,}" if kind == "too_long" else written(fault["input"])
    return f"found {found}: {allowed}"


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
