"""Which checks a spec calls for, and the value that it requires of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from pytest_llmdeploy.checks.decorator import Check, CheckError
from pytest_llmdeploy.spec import (
    KeyPath,
    Problem,
    Spec,
    SpecError,
    Workload,
    dotted,
    fault_text,
    nearest,
)
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.units import Percentile


@dataclass(frozen=True, slots=True)
class Requirement:
    """One item of a spec: a check, and the key and value that it is to judge; `path` is where the
    spec has that key.
    """

    check: Check
    key: str = ""
    path: KeyPath = ()
    value: Any = None
    placeholders: Mapping[str, Any] = field(default_factory=dict)
    waived: str = ""

    @property
    def item(self) -> str:
        names = {
            name: value.name if isinstance(value, Workload) else value
            for name, value in self.placeholders.items()
        }
        return self.check.item.format(**names)

    @property
    def wanted(self) -> str:
        """The value as the spec has it; empty where there is none, or one of many keys."""
        value = self.value
        return "" if value is None or isinstance(value, Record | bool) else str(value)

    @property
    def id(self) -> str:
        """The part in brackets of the node id; empty for a check that stands once."""
        parts = (
            value.name if isinstance(value, Workload) else str(value)
            for value in self.placeholders.values()
        )
        return "-".join(parts)


def requirements(spec: Spec, checks: Iterable[Check]) -> list[Requirement]:
    """Every item of `spec`, in the order of the checks.

    Raises:
        SpecError: for a requirement that no check judges, a value that its check can't take, or a
            waiver of something that is not required.
    """
    checks = list(checks)
    problems: list[Problem] = []
    found: list[Requirement] = []
    judged: set[KeyPath] = set()
    for check in checks:
        for key, value, placeholders in _instances(spec, check):
            judged.add(key)
            try:
                parsed = _parsed(check, value)
            except (ValueError, ValidationError) as error:
                problems += (spec.problem((*key, *at), text) for at, text in _faults(error))
                continue
            except CheckError as error:
                problems.append(spec.problem(key, str(error)))
                continue
            item = Requirement(check, _text(spec, key), key, parsed, placeholders)
            waived = (why for waiver, why in spec.waive.items() if _covers(waiver, item))
            found.append(replace(item, waived=next(waived, "")))
    problems += _unjudged(spec, checks, judged)
    problems += _idle_waivers(spec, found)
    if problems:
        raise SpecError(problems)
    return found


def _instances(spec: Spec, check: Check) -> Iterator[tuple[KeyPath, Any, dict[str, Any]]]:
    if check.when is not None and not check.when(spec):
        return
    if check.require is None:
        yield (), None, {}
        return
    path = tuple(check.require.split("."))
    path = path if path[0] in type(spec).model_fields else ("require", *path)
    yield from _walk(spec, path, (), {})


def _walk(
    node: Any, path: tuple[str, ...], key: KeyPath, placeholders: dict[str, Any]
) -> Iterator[tuple[KeyPath, Any, dict[str, Any]]]:
    """The values at `path` below `node` that the spec gives; no limits at all are none."""
    if node is None or (node == {} and key[0] == "workloads"):
        return
    if not path:
        yield key, node, placeholders
        return
    part, *rest = path
    name = part[1:-1] if part.startswith("{") else ""
    if isinstance(node, tuple):
        for index, entry in enumerate(node):
            yield from _walk(entry, tuple(rest), (*key, index), {**placeholders, name: entry})
    elif name:
        for entry, value in node.items():
            found = {**placeholders, name: Percentile.parse(entry)}
            yield from _walk(value, tuple(rest), (*key, entry), found)
    elif isinstance(node, BaseModel):
        yield from _walk(getattr(node, part, None), tuple(rest), (*key, part), placeholders)
    elif isinstance(node, Mapping):
        yield from _walk(node.get(part), tuple(rest), (*key, part), placeholders)


def _parsed(check: Check, value: Any) -> Any:
    """A value of somebody's own namespace by the annotation of `required`; others are typed."""
    wanted, typed = check.required_type, (check.require or "").startswith("workloads.")
    if wanted is None or typed or isinstance(value, BaseModel):
        return value
    try:
        adapter = TypeAdapter(wanted)
    except PydanticUserError:
        name = getattr(wanted, "__name__", str(wanted))
        msg = (
            f"{check.place}: the check {check.name!r} wants a {name}, which no spec can hold: "
            "annotate `required` with a unit, a number, a text, or a pydantic model"
        )
        raise CheckError(msg) from None
    return adapter.validate_python(value, strict=True)


def _unjudged(
    spec: Spec, checks: Iterable[Check], judged: Collection[KeyPath]
) -> Iterator[Problem]:
    """What the spec requires and no check judges: it would never be looked at."""
    required: list[tuple[KeyPath, Any]] = [(("require",), spec.require)]
    required += [(("workloads", i, "require"), w.require) for i, w in enumerate(spec.workloads)]
    known = {check.require for check in checks if check.require}
    names = known | {key.partition(".")[0] for key in known} - {"workloads"}
    for key in (key for start, node in required for key in _leaves(node, start)):
        if not any(key[:length] in judged for length in range(1, len(key) + 1)):
            word = dotted(key).removeprefix("require.")
            below = [name.removeprefix(f"{word}.") for name in known if name.startswith(f"{word}.")]
            message = f"no check judges this: {nearest(word, names)}"
            if below:
                message = f"write a mapping of keys: {', '.join(sorted(below))}"
            yield spec.problem(key, "says nothing: write a value" if word in known else message)


def _leaves(node: Any, key: KeyPath) -> Iterator[KeyPath]:
    """The keys below `node` that are given; what a record leaves at None is not."""
    if isinstance(node, BaseModel):
        own = type(node).model_fields
        entries = {name: value for name, value in node if value is not None or name not in own}
    elif isinstance(node, Mapping):
        entries = dict(node)
    else:
        yield key
        return
    for name, value in entries.items():
        yield from _leaves(value, (*key, name))


def _idle_waivers(spec: Spec, found: Iterable[Requirement]) -> Iterator[Problem]:
    found = list(found)
    for waiver in spec.waive:
        if not any(requirement.waived for requirement in found if _covers(waiver, requirement)):
            names = {r.key.removeprefix("require.") for r in found if r.key}
            names |= {r.check.name for r in found}
            message = f"waives nothing that this spec requires: {nearest(waiver, names)}"
            yield spec.problem(("waive", waiver), message)


def _covers(waiver: str, requirement: Requirement) -> bool:
    key = requirement.key.removeprefix("require.")
    names = {requirement.check.name, key} - {""}
    return waiver in names or key.startswith(f"{waiver}.")


def _text(spec: Spec, key: KeyPath) -> str:
    """The key path as the report shows it: workloads by their names."""
    if key and key[0] == "workloads" and isinstance(key[1], int):
        return dotted(("workloads", spec.workloads[key[1]].name, *key[2:]))
    return dotted(key)


def _faults(error: ValueError) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a value, and where in it."""
    if not isinstance(error, ValidationError):
        yield (), str(error)
        return
    for fault in error.errors(include_url=False):
        yield fault["loc"], fault_text(dict(fault))
