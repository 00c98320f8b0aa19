"""What one pytest run knows: its specs, their checks, their deployments, and the rows so far."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_llmdeploy.checks import Check, DuplicateCheckError, Registry, Requirement, requirements
from pytest_llmdeploy.checks.decorator import CheckError
from pytest_llmdeploy.deployment import Deployment
from pytest_llmdeploy.evidence import Row
from pytest_llmdeploy.plan.graph import deployment_graph
from pytest_llmdeploy.report import Checklist, Context, SpecText, Unchecked
from pytest_llmdeploy.secrets import redact, redacted
from pytest_llmdeploy.serving.command import launch_text
from pytest_llmdeploy.spec import Spec, SpecError, load_spec, nearest_file

if TYPE_CHECKING:
    from pytest_llmdeploy.baseline import Earlier

LIVE_PHASES = ("host", "live", "stopped")
NOT_OURS = "--deploy-introspect adds to a server that this run launches, not to one that runs"


@dataclass(frozen=True)
class Options:
    """The options of a run; `reports` are the files to write, `summary` is the one to add to,
    `baseline` the earlier run to compare with, by the names of its specs.
    """

    plan_only: bool = False
    introspect: bool = False
    url: str | None = None
    reports: Sequence[Path] = ()
    summary: Path | None = None
    baseline: Mapping[str, Earlier] | None = None

    @property
    def has_pages(self) -> bool:
        """Whether a report is written that people read."""
        return bool(self.summary) or any(path.suffix != ".json" for path in self.reports)


@dataclass(frozen=True)
class SpecItems:
    """A spec with everything that is to be checked on it."""

    spec: Spec
    requirements: Sequence[Requirement]
    modules: Sequence[ModuleType]


@dataclass
class Session:
    """One for each run. `paths` are the spec files, `import_module` imports a user's checks;
    `rows` are by spec and item, `node_ids` of the files that pytest collected here.
    """

    root: Path
    paths: Sequence[Path]
    options: Options
    registry: Registry
    import_module: Callable[[Path], ModuleType]
    log_folder: Path
    progress: Callable[[str], None] = lambda _text: None
    rows: dict[Path, dict[str, Row]] = field(default_factory=dict)
    node_ids: dict[Path, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    _loaded: dict[Path, SpecItems | SpecError] = field(default_factory=dict)
    _deployments: dict[Path, Deployment] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    def items(self, path: Path) -> SpecItems:
        """The spec in `path` and what is to be checked on it.

        Raises:
            SpecError: when it is not a valid spec.
        """
        if path not in self._loaded:
            try:
                self._loaded[path] = self._load(path)
            except SpecError as error:
                self._loaded[path] = error
        found = self._loaded[path]
        if isinstance(found, SpecError):
            raise found
        return found

    def valid_paths(self) -> Iterator[Path]:
        """The files that hold a valid spec."""
        for path in self.paths:
            try:
                self.items(path)
            except SpecError:
                continue
            yield path

    def deployment(self, path: Path) -> Deployment:
        """The deployment of the spec in `path`; the same one however often it is asked for."""
        if path not in self._deployments:
            spec = self.items(path).spec
            log = self.log_folder / f"{spec.name}.log"
            url = spec.attach.url if spec.attach else None
            introspect = self.options.introspect
            baseline = (self.options.baseline or {}).get(spec.name)
            self._deployments[path] = Deployment(
                spec, log, url, self.progress, introspect, baseline
            )
        return self._deployments[path]

    def add_row(self, path: Path, row: Row) -> None:
        """A row of the spec in `path`; the last one of an item stands."""
        self.rows.setdefault(path, {})[row.id.partition("::")[2]] = row

    def node_id(self, path: Path) -> str:
        """The id of a spec's file, as pytest shows it."""
        if path in self.node_ids:
            return self.node_ids[path]
        return path.relative_to(self.root).as_posix() if self.root in path.parents else path.name

    def lines(self, path: Path) -> dict[str, int]:
        """The line of the spec in `path` that asks for each of its items, by the item's node id."""
        items, prefix = self.items(path), self.node_id(path)
        return {
            f"{prefix}::{requirement_id(found)}": items.spec.line(found.path)
            for found in items.requirements
        }

    def checklists(self) -> list[Checklist]:
        """What became of every spec."""
        return [self._checklist(path) for path in self.paths]

    def _checklist(self, path: Path) -> Checklist:
        prefix = self.node_id(path)
        try:
            items = self.items(path)
        except SpecError as error:
            return Checklist(name=path.stem, path=prefix, broken=redact(str(error)))
        found = self.rows.get(path, {})
        # In the checklist's own order, whatever order the phases ran in.
        ids = {requirement_id(requirement): requirement for requirement in items.requirements}
        missing = [id_ for id_ in ids if id_ not in found]
        left_out = [
            id_
            for id_ in missing
            if self.options.plan_only and phase_of(ids[id_].check) in LIVE_PHASES
        ]
        deployment = self.deployment(path)
        planned = [row for row in found.values() if row.phase == "plan"]
        is_broken = any(not row.status.is_green for row in planned)
        checklist = Checklist(
            name=items.spec.name,
            path=prefix,
            rows=[found[id_] for id_ in ids if id_ in found],
            not_run=[f"{prefix}::{id_}" for id_ in missing if id_ not in left_out],
            left_out=[f"{prefix}::{id_}" for id_ in left_out],
            is_plan_only=self.options.plan_only,
            repairs=redacted(list(deployment.repairs())) if is_broken else (),
            facts=redacted(deployment.to_json()),
            seconds=deployment.seconds,
            context=self._context(path) if self.options.has_pages else Context(),
        )
        return self._compared(checklist, items.spec)

    def _compared(self, checklist: Checklist, spec: Spec) -> Checklist:
        """With what has changed since the baseline."""
        if self.options.baseline is None:
            return checklist
        from pytest_llmdeploy.baseline import Earlier  # noqa: PLC0415 - only with a baseline
        from pytest_llmdeploy.report.comparison import changes  # noqa: PLC0415 - as above

        was, now = self.options.baseline[spec.name], Earlier.of(checklist.to_json())
        return replace(checklist, changes=redacted(changes(was, now, spec.confidence)))

    def _context(self, path: Path) -> Context:
        """What a page shows beside the rows of the spec in `path`."""
        items = self.items(path)
        source = items.spec.source
        rows: dict[Path, dict[int, list[str]]] = {file: {} for file in source.files}
        for requirement in items.requirements:
            if requirement.path:
                id_ = f"{self.node_id(path)}::{requirement_id(requirement)}"
                place = source.place(requirement.path)
                rows[place.path].setdefault(place.line, []).append(id_)
        deployment = self.deployment(path)
        found = self.rows.get(path, {})
        return Context(
            plan=deployment.plan,
            unchecked=[
                Unchecked(
                    item=requirement.item,
                    requirement=requirement.wanted or requirement.check.summary,
                    phase=phase_of(requirement.check),
                )
                for requirement in items.requirements
                if requirement_id(requirement) not in found
            ],
            texts=[
                SpecText(path=self.node_id(file), text=_text(file), rows=found)
                for file, found in rows.items()
            ],
            launch=redact(launch_text(items.spec)),
            graph=deployment_graph(items.spec, deployment.plan),
        )

    def _load(self, path: Path) -> SpecItems:
        spec = load_spec(path).attached_to(self.options.url)
        if self.options.introspect and spec.attach:
            raise SpecError([spec.problem(("attach",), NOT_OURS)])
        modules = [self._import(spec, index) for index in range(len(spec.checks))]
        try:
            registry = self.registry.extended(modules)
        except DuplicateCheckError as error:
            raise SpecError([spec.problem(("checks",), str(error))]) from None
        # A server that somebody else started is not ours to stop, nor to judge for how it ends.
        applying = [check for check in registry if not (check.launched and spec.attach)]
        return SpecItems(spec, requirements(spec, applying), registry.modules)

    def _import(self, spec: Spec, index: int) -> ModuleType:
        path = spec.resolve(spec.checks[index])
        key = ("checks", index)
        # Unlike a Path it answers for any text, even one that can't be a name.
        if not os.path.isfile(path):  # noqa: PTH113
            message = f"there is no file {spec.checks[index]!r}{nearest_file(path)}"
            raise SpecError([spec.problem(key, message)])
        try:
            return self.import_module(path)
        except Exception as error:  # noqa: BLE001 - whatever a user's module raises
            # A check that can't be one says itself where and why.
            own = isinstance(error, CheckError)
            reason = str(error) if own else f"{type(error).__name__}: {error}"
            message = f"{spec.checks[index]} cannot be imported: {reason}"
            raise SpecError([spec.problem(key, message)]) from None


def _text(path: Path) -> str:
    try:
        return redact(path.read_text(encoding="utf-8"))
    except OSError:
        # It was there when the run began.
        return ""


def requirement_id(requirement: Requirement) -> str:
    """The part of a node id after the file."""
    name = requirement.check.name
    return f"{name}[{requirement.id}]" if requirement.id else name


def phase_of(check: Check) -> str:
    """The phase of a check: that of the latest fixture that it asks for."""
    code = check.function.__code__
    return phase_of_names(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def phase_of_names(names: Sequence[str]) -> str:
    """plan, host, live or stopped, by the names of the fixtures."""
    if "stopped" in names:
        return "stopped"
    if "traffic" in names or "server" in names:
        return "live"
    return "host" if "host" in names else "plan"
