"""One YAML file is one test module: `SpecFile`, and what is collected with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from pytest_llmdeploy.checks import Expect, Requirement
from pytest_llmdeploy.fixtures import PUBLIC, SESSION
from pytest_llmdeploy.rows import EXPECT, REQUIREMENT
from pytest_llmdeploy.session import SpecItems, phase_of_names
from pytest_llmdeploy.spec import SpecError, Workload, nearest
from pytest_llmdeploy.units import Percentile

_PHASES = ("plan", "host", "live", "stopped")
_FIXTURE_TYPE = type(pytest.fixture(lambda: None))


@pytest.fixture(autouse=True)
def _requirement(request: pytest.FixtureRequest, _deployment: Any) -> Requirement:
    """What this item is to judge; every item belongs to a deployment, whatever it asks for."""
    requirement: Requirement = request.param
    return requirement


@pytest.fixture
def required(_requirement: Requirement) -> Any:
    """The value that the spec gives, by the annotation of the parameter."""
    return _requirement.value


@pytest.fixture
def workload(_requirement: Requirement) -> Workload:
    """The workload of a check whose key has {workload}."""
    found: Workload = _requirement.placeholders["workload"]
    return found


@pytest.fixture
def percentile(_requirement: Requirement) -> Percentile:
    """The percentile of a check whose key has {percentile}."""
    found: Percentile = _requirement.placeholders["percentile"]
    return found


@pytest.fixture
def expect(request: pytest.FixtureRequest, _requirement: Requirement) -> Expect:
    """The comparison that makes the row."""
    made = Expect(_requirement)
    request.node.stash[EXPECT] = made
    return made


OF_THE_CHECK = (required, workload, percentile, expect)


class SpecFile(pytest.Module):
    """A spec as a test module: its checks are its functions, synthesised from the registry."""

    def _getobj(self) -> ModuleType:
        try:
            self.items = self.config.stash[SESSION].items(self.path)
            return _module(self.path, self.items)
        except SpecError as error:
            raise self.CollectError(str(error)) from None

    def istestfunction(self, obj: object, name: str) -> bool:
        return name in {r.check.name for r in self.items.requirements} and callable(obj)

    def istestclass(self, _obj: object, _name: str) -> bool:
        return False

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        self.config.stash[SESSION].node_ids[self.path] = self.nodeid
        for item in super().collect():
            if isinstance(item, pytest.Function):
                requirement = cast("Requirement", item.callspec.params["_requirement"])
                item.stash[REQUIREMENT] = requirement
                self._refuse_unknown_fixtures(item, requirement)
                # Failures point at the spec, not at the code of the check.
                place = partial(_place, self.items, requirement)
                item.reportinfo = place  # type: ignore[method-assign]
            yield item

    def _refuse_unknown_fixtures(self, item: pytest.Function, requirement: Requirement) -> None:
        """Before anything is launched for a check that can't run."""
        info = item._fixtureinfo  # noqa: SLF001 - there is no public way to ask
        for name in info.argnames:
            if name not in info.name2fixturedefs and name != "request":
                check = requirement.check
                raise self.CollectError(
                    f"{check.place}: the check {check.name!r} asks for a fixture that is not "
                    f"there, {name!r}: {nearest(name, self._fixture_names())}"
                )

    def _fixture_names(self) -> list[str]:
        """What a check may ask for; more may come from a conftest."""
        found = (name for name, value in vars(self.obj).items() if isinstance(value, _FIXTURE_TYPE))
        return [name for name in found if not name.startswith("_")]


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Gives an item its deployment, and an item of a spec its requirement."""
    session = metafunc.config.stash[SESSION]
    parent = metafunc.definition.parent
    if isinstance(parent, SpecFile):
        metafunc.parametrize(
            "_deployment", [parent.path], indirect=True, scope="session", ids=[pytest.HIDDEN_PARAM]
        )
        name = metafunc.function.__name__
        mine = [r for r in parent.items.requirements if r.check.name == name]
        ids = [requirement.id or pytest.HIDDEN_PARAM for requirement in mine]
        metafunc.parametrize("_requirement", mine, indirect=True, ids=ids)
    elif "_deployment" in metafunc.fixturenames:
        paths = list(session.valid_paths())
        names = [session.items(path).spec.name for path in paths]
        metafunc.parametrize("_deployment", paths, indirect=True, scope="session", ids=names)


def phase(item: pytest.Item) -> str | None:
    """The phase of an item that takes part in a deployment; None for any other test."""
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return phase_of_names(names) if "_deployment" in names else None


def in_order(items: Sequence[pytest.Item], paths: Sequence[Path]) -> list[pytest.Item]:
    """All plan checks first, then one deployment at a time: host, live at rest, traffic, stopped.
    What takes no part in a deployment keeps its place among the plan checks.
    """
    index = {path: number for number, path in enumerate(paths)}

    def place(item: Any) -> tuple[int, int, int, int]:
        found = phase(item)
        if found in (None, "plan"):
            return 0, 0, 0, 0
        # Without any valid spec, a test that asks for a deployment has none.
        spec = item.callspec.params["_deployment"] if hasattr(item, "callspec") else paths[0]
        return 1, index[spec], _PHASES.index(found), "traffic" in item.fixturenames

    return sorted(_unshuffled(items, index), key=place)


def _unshuffled(items: Sequence[pytest.Item], index: Mapping[Path, int]) -> Iterator[pytest.Item]:
    """The items with those of the specs in the checklist's order, whatever pytest-randomly and
    its kind made of it; other tests stay where they are.
    """

    def place(item: pytest.Item) -> tuple[int, int]:
        requirements = cast("SpecFile", item.parent).items.requirements
        mine = item.stash[REQUIREMENT]
        return index[item.path], next(n for n, each in enumerate(requirements) if each is mine)

    ours = iter(sorted((item for item in items if REQUIREMENT in item.stash), key=place))
    return (next(ours) if REQUIREMENT in item.stash else item for item in items)


def _module(path: Path, items: SpecItems) -> ModuleType:
    """The module of a spec: the pipeline's fixtures, the fixtures of its own checks, the checks.

    The pipeline is set on the module itself, where nothing that a conftest defines can replace it.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    own = {fixture.__name__: fixture for fixture in (*PUBLIC, _requirement, *OF_THE_CHECK)}
    for name, fixture, source in _fixtures(items.modules):
        if name in own:
            message = f"the fixture {name!r} in {source} would replace the built-in one: rename it"
            raise SpecError([items.spec.problem(("checks",), message)])
        setattr(module, name, fixture)
    for name, fixture in own.items():
        setattr(module, name, fixture)
    for requirement in items.requirements:
        setattr(module, requirement.check.name, requirement.check.function)
    return module


def _fixtures(modules: Iterable[ModuleType]) -> Iterator[tuple[str, object, str]]:
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, _FIXTURE_TYPE):
                yield name, value, str(module.__file__)


def _place(items: SpecItems, requirement: Requirement) -> tuple[Path, int, str]:
    place = items.spec.source.place(_key(items, requirement))
    return place.path, place.line - 1, requirement.check.name


def _key(items: SpecItems, requirement: Requirement) -> tuple[str | int, ...]:
    """The key path in the file of what the requirement shows by name."""
    if not requirement.key.startswith("workloads."):
        return tuple(requirement.key.split(".")) if requirement.key else ()
    workload = requirement.placeholders["workload"]
    rest = requirement.key.removeprefix(f"workloads.{workload.name}.").split(".", 3)
    return ("workloads", items.spec.workloads.index(workload), *rest)
