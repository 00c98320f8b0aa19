"""`@check`: attaches to a function what makes it a check, and nothing else."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_llmdeploy.spec import Spec, nearest

_ATTRIBUTE = "__llmdeploy_check__"
_Function = TypeVar("_Function", bound=Callable[..., None])
# What a key may be multiplied by.
_PLACEHOLDERS = ("workload", "percentile")


class CheckError(TypeError):
    """A function that can't be a check; the text says where it is, and what to write."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is known of a check before it runs.

    `require` is the spec key that it judges, under `require.` or from the top ("workloads…"), with
    placeholders ({workload}, {percentile}) that multiply it; None for a check that always runs.
    """

    item: str
    require: str | None
    family: str
    hint: str
    when: Callable[[Spec], bool] | None
    launched: bool
    function: Callable[..., None]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What it says of itself in a sentence; empty when it says nothing."""
        first = (inspect.getdoc(self.function) or "").partition("\n\n")[0]
        return " ".join(first.split()).removesuffix(".")

    @property
    def place(self) -> str:
        """The file and line of the function."""
        return _place(self.function)

    @property
    def required_type(self) -> Any:
        """The annotation of the parameter `required`; None when there is no such parameter.

        Raises:
            CheckError: when the annotation names what the module does not have.
        """
        try:
            parameters = inspect.signature(self.function, eval_str=True).parameters
        except (NameError, AttributeError, SyntaxError) as error:
            msg = f"{self.place}: an annotation of the check {self.name!r} means nothing: {error}"
            raise CheckError(msg) from None
        return parameters["required"].annotation if "required" in parameters else None


def check(
    item: str,
    *,
    require: str | None = None,
    family: str | None = None,
    hint: str = "",
    when: Callable[[Spec], bool] | None = None,
    launched: bool = False,
) -> Callable[[_Function], _Function]:
    """Makes a check of a function.

    Args:
        item: What the checklist calls it; may use the placeholders of `require`.
        require: The spec key whose value it judges ("memory.min_headroom"); the check is collected
            when the spec gives that key. Without one, it always is.
        family: The group that it is listed under; by default the name of its module.
        hint: What to change when it does not pass.
        when: Whether it applies to a spec at all. A requirement that no check applies to is an
            error of the spec.
        launched: Whether it is about a server that the run itself launched; there is no such item
            when it attaches to one.

    Raises:
        CheckError: for a function that could never decide anything.
    """

    def attach(function: _Function) -> _Function:
        for fault in _faults(function, item, require):
            msg = f"{_place(function)}: the check {function.__name__!r} {fault}"
            raise CheckError(msg)
        group = family or function.__module__.rpartition(".")[2].removeprefix("checks_")
        setattr(function, _ATTRIBUTE, Check(item, require, group, hint, when, launched, function))
        return function

    return attach


def check_of(function: Any) -> Check | None:
    """The check that a function is, if it is one."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Check) else None


def _place(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _faults(function: Callable[..., Any], item: str, require: str | None) -> Iterator[str]:
    """Why the function can't be a check."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield "is async, and nobody would await it: write `def`"
    if inspect.isgeneratorfunction(function):
        yield "has a `yield`, and nobody would resume it: compare with `expect` instead"
    parameters = inspect.signature(function).parameters
    if "expect" not in parameters:
        yield "must ask for `expect`, else it can decide nothing"
    yield from _misplaced(_names(require or ""), _names(item), parameters)
    required = parameters.get("required")
    if required is not None and require is None:
        yield "asks for `required`, and has no key: give `require=`"
    if required is not None and required.annotation is inspect.Parameter.empty:
        yield "must say what `required` is, as in `required: Bytes`"


def _misplaced(
    keyed: Collection[str], shown: Collection[str], parameters: Collection[str]
) -> Iterator[str]:
    """Placeholders that the key does not have, or can't have."""
    for name in keyed:
        if name not in _PLACEHOLDERS:
            yield f"has {{{name}}} in its key: {nearest(name, _PLACEHOLDERS)}"
    for name in shown:
        if name not in keyed:
            yield f"has {{{name}}} in its item, and not in its key"
    for name in _PLACEHOLDERS:
        if name in parameters and name not in keyed:
            yield f"asks for `{name}`, and there is no {{{name}}} in its key"


def _names(text: str) -> list[str]:
    """The names in braces."""
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
