"""What a check may ask for: the fixtures, and what each of them holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any

from docs_hooks.markdown import code, table
from pytest_llmdeploy import collection, fixtures
from pytest_llmdeploy.checks import Expect
from pytest_llmdeploy.checks.expect import Expectation
from pytest_llmdeploy.evidence import Evidence
from pytest_llmdeploy.load import Latencies, Traffic, WorkloadTraffic
from pytest_llmdeploy.plan import Plan, Rank
from pytest_llmdeploy.probes import Device, Devices, Host
from pytest_llmdeploy.probes.recording import Recording
from pytest_llmdeploy.serving import Server, Stopped
from pytest_llmdeploy.session import phase_of_names

_HEAD = """# The fixtures

A check asks for them by name, and so may any test; [Checks](../how-to/own-checks.md) shows how. The
phase of a check is that of the latest that it asks for.

"""
# In the order of the pipeline.
HELD: tuple[type[Any], ...] = (
    Plan,
    Rank,
    Host,
    Server,
    Devices,
    Device,
    Traffic,
    WorkloadTraffic,
    Latencies,
    Recording,
    Stopped,
    Evidence,
    Expect,
    Expectation,
)
_NOT_TOLD = ("_", "to_json")


def page() -> str:
    """The fixtures, then the types that they have."""
    return f"{_HEAD}{_fixtures()}\n" + "\n".join(_held(one) for one in HELD)


def offered() -> Iterator[tuple[str, Any]]:
    """The fixtures by name: the pipeline, and what belongs to the check itself."""
    for fixture in (*fixtures.PUBLIC, *collection.OF_THE_CHECK):
        yield fixture.__name__, inspect.unwrap(fixture)


def _fixtures() -> str:
    pipeline = {fixture.__name__ for fixture in fixtures.PUBLIC}
    rows = [
        (
            code(name),
            _type(inspect.signature(function).return_annotation),
            inspect.getdoc(function) or "",
            phase_of_names([name]) if name in pipeline else "",
        )
        for name, function in offered()
    ]
    return table(("fixture", "type", "what it is", "phase"), rows)


def _held(one: type[Any]) -> str:
    parts = [f"## {one.__name__}", inspect.getdoc(one) or ""]
    if held := list(columns(one)):
        parts.append(table(("field", "type"), held))
    if asked := list(answers(one)):
        parts.append(table(("asked for", "type", "what it is"), asked))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def columns(one: type[Any]) -> Iterator[tuple[str, str]]:
    """The fields of a record; what they mean is in its own text."""
    for field in fields(one):
        if not field.name.startswith(_NOT_TOLD):
            yield code(field.name), _type(field.type)


def answers(one: type[Any]) -> Iterator[tuple[str, str, str]]:
    """What a record can be asked: its properties and methods."""
    for name, member in vars(one).items():
        function = _function(member)
        if function is None or (name.startswith(_NOT_TOLD) and name != "__call__"):
            continue
        if name in {field.name for field in fields(one)} | {"__init__"}:
            continue
        signature = inspect.signature(function)
        given = f"({', '.join([*signature.parameters][1:])})"
        called = one.__name__.lower() if name == "__call__" else name
        called += given if inspect.isfunction(member) else ""
        about = (inspect.getdoc(function) or "").partition("\n\n")[0]
        yield code(called), _type(signature.return_annotation), about


def _function(member: Any) -> Any:
    """The function behind a property or a method; None for whatever else a class has."""
    match member:
        case property():
            return member.fget
        case cached_property():
            return member.func
    return member if inspect.isfunction(member) else None


def _type(annotation: Any) -> str:
    """A type as it is written, with links to those that have a section or a page."""
    if annotation is inspect.Signature.empty or annotation in {"Any", "None"}:
        return ""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    links = {one.__name__: f"#{one.__name__.lower()}" for one in HELD}
    links |= {"Spec": "keys.md", "Workload": "keys.md#workloads"}
    if text in links:
        return f"[{text}]({links[text]})"
    return code(re.sub(r"\s+", " ", text))
