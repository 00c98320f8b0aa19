"""Flags and variables that a spec passes through to vLLM, read as vLLM will read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Spec

Broken = Iterator[tuple[str, str]]
"""The key and the message of every way in which a rule is broken."""

SpecRule = Callable[[Spec], Broken]
"""A rule that asks nothing of the model."""

ShapeRule = Callable[[Spec, ModelShape], Broken]


def flag(spec: Spec, name: str) -> Any:
    """The value as it is written; None where the flag is not given."""
    extra = spec.serve.model_extra or {}
    return extra[name] if name in extra else vars(spec.serve).get(name)


def number(spec: Spec, name: str) -> float | None:
    """The number that a flag is given; None where it is given none."""
    value = flag(spec, name)
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def count(spec: Spec, name: str) -> int | None:
    """The whole number that a flag is given; None where it is given none."""
    value = number(spec, name)
    return int(value) if value is not None and value.is_integer() else None


def setting(spec: Spec, name: str, key: str) -> Any:
    """The value under `key` of a flag that is a mapping, or the JSON of one."""
    value = flag(spec, name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value.get(key) if isinstance(value, Mapping) else None


def variable(spec: Spec, name: str) -> str | None:
    """The text of a variable of the server's environment; None where it is not known here."""
    value = spec.serve.env.get(name)
    return value.text if value else None


def is_on(spec: Spec, name: str) -> bool | None:
    """Whether vLLM takes a variable for true; None where its value is not known here."""
    value = spec.serve.env.get(name)
    if value is None:
        return False
    return None if value.text is None else value.text.strip().lower() in {"1", "true"}
