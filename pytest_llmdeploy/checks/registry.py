"""The checks that a run knows: built in, from plugins, and from a spec's own modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType

from pytest_llmdeploy.checks import (
    agreement,
    balance,
    capacity,
    driver,
    dry_run,
    feasibility,
    health,
    identity,
    interconnect,
    kv_cache,
    latency,
    memory,
    ranks,
    regression,
    remote_code,
    replicas,
    service,
    shutdown,
    strategy,
    tenancy,
)
from pytest_llmdeploy.checks.decorator import Check, check_of

# The order of the checklist.
_BUILT_IN = (
    feasibility,
    dry_run,
    remote_code,
    ranks,
    driver,
    memory,
    agreement,
    tenancy,
    kv_cache,
    balance,
    interconnect,
    health,
    identity,
    replicas,
    latency,
    service,
    capacity,
    regression,
    strategy,
    shutdown,
)


class DuplicateCheckError(Exception):
    """Two checks have the same name; the text says where both are."""


def checks_in(module: ModuleType) -> list[Check]:
    """The checks that a module defines, in the order of its text."""
    found = (check_of(value) for value in vars(module).values())
    own = {id(check): check for check in found if check}
    return sorted(own.values(), key=lambda check: check.function.__code__.co_firstlineno)


class Registry:
    """Checks by name.

    Raises:
        DuplicateCheckError: when two different functions have the same name.
    """

    def __init__(self, modules: Iterable[ModuleType] = ()) -> None:
        self._checks: dict[str, Check] = {}
        # Their fixtures come along.
        self.modules = tuple(modules)
        for module in (*_BUILT_IN, *self.modules):
            for check in checks_in(module):
                self.add(check)

    def add(self, check: Check) -> None:
        known = self._checks.setdefault(check.name, check)
        if known.function is not check.function:
            msg = f"two checks are called {check.name!r}: {known.place} and {check.place}"
            raise DuplicateCheckError(msg)

    def extended(self, modules: Iterable[ModuleType]) -> Registry:
        """This registry and the checks of more modules."""
        modules = tuple(modules)
        result = Registry()
        result.modules = (*self.modules, *modules)
        for check in self:
            result.add(check)
        for module in modules:
            for check in checks_in(module):
                result.add(check)
        return result

    def __iter__(self) -> Iterator[Check]:
        return iter(self._checks.values())
