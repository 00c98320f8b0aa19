"""`@check`: attaches to a function what makes it a check, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_llmdeploy.spec import Spec

_ATTRIBUTE = "__llmdeploy_check__"
_Function = TypeVar("_Function", bound=Callable[..., None])


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
    def place(self) -> str:
        """The file and line of the function."""
        code = self.function.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    @property
    def required_type(self) -> Any:
        """The annotation of the parameter `required`; None when there is none."""
        parameters = inspect.signature(self.function, eval_str=True).parameters
        annotation = parameters["required"].annotation if "required" in parameters else None
        return None if annotation is inspect.Parameter.empty else annotation


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
    """

    def attach(function: _Function) -> _Function:
        if "expect" not in inspect.signature(function).parameters:
            msg = (
                f"the check {function.__name__!r} must ask for `expect`, else it can decide nothing"
            )
            raise TypeError(msg)
        group = family or function.__module__.rpartition(".")[2].removeprefix("checks_")
        setattr(function, _ATTRIBUTE, Check(item, require, group, hint, when, launched, function))
        return function

    return attach


def check_of(function: Any) -> Check | None:
    """The check that a function is, if it is one."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Check) else None
