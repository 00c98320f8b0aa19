"""The gate: pytest's hooks in a run that has a spec to check."""

from __future__ import annotations

import glob
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.pathlib import ImportMode, import_path

from pytest_llmdeploy.checks import DuplicateCheckError, Registry
from pytest_llmdeploy.collection import SpecFile, in_order, parametrize, phase
from pytest_llmdeploy.fixtures import SESSION, NotServing
from pytest_llmdeploy.report.annotations import Annotation, commands, of_row
from pytest_llmdeploy.report.files import FORMS, add_summary, has_what_it_takes, write_report
from pytest_llmdeploy.report.junit import add_row, add_verdicts, junit_file
from pytest_llmdeploy.report.letters import encodable
from pytest_llmdeploy.report.terminal import ProgressLine, encoding, write_checklist
from pytest_llmdeploy.rows import (
    REQUIREMENT,
    attach_row,
    hide_secrets,
    rewritten,
    row_in,
    without_secrets,
)
from pytest_llmdeploy.secrets import redact
from pytest_llmdeploy.session import LIVE_PHASES, NOT_OURS, Options, Session
from pytest_llmdeploy.spec import SpecError, load_spec, looks_like_spec, nearest, nearest_file
from pytest_llmdeploy.spec.attach import checked_url

if TYPE_CHECKING:
    from pytest_llmdeploy.baseline import Earlier

_YAML = (".yaml", ".yml")
# The file that GitHub shows as the summary of a step.
_SUMMARY = "GITHUB_STEP_SUMMARY"
_QUIETEST = -2
_RERUN = "rerunning a live check until it passes proves nothing"
# The entry points of packages that have checks.
_GROUP = "pytest_llmdeploy.checks"


def open_gate(config: pytest.Config, patterns: Sequence[str]) -> None:
    """Sets up a run with the specs of `patterns` and of the command line's own arguments.

    Raises:
        pytest.UsageError: when a pattern matches nothing, or options contradict each other.
    """
    base = config.invocation_params.dir
    named = [path for pattern in patterns for path in _matches(base, pattern)]
    given = [_absolute(base, argument) for argument in config.args]
    given = [path for path in given if path.suffix in _YAML and looks_like_spec(path)]
    paths = list(dict.fromkeys([*named, *given]))
    if not paths:
        return
    options = _options(config, base)
    _refuse_contradictions(config, options, paths)
    options = replace(options, baseline=_baseline(config, base, paths))
    progress = ProgressLine(config)
    session = Session(
        root=config.rootpath,
        paths=paths,
        options=options,
        registry=_registry(config),
        import_module=lambda path: _import_checks(config, path),
        log_folder=_log_folder(config),
        progress=progress,
    )
    config.stash[SESSION] = session
    gate = Gate(config, session, progress, user_arguments=_take_over_arguments(config, paths))
    config.pluginmanager.register(gate, "llmdeploy-gate")


class Gate:
    """The hooks. `user_arguments` are the paths that were asked for beside the specs."""

    def __init__(
        self,
        config: pytest.Config,
        session: Session,
        progress: ProgressLine,
        user_arguments: Sequence[Path],
    ) -> None:
        self.config = config
        self.session = session
        self.progress = progress
        self.user_arguments = user_arguments
        self.folders = {parent for path in session.paths for parent in path.parents}
        self.failed_servers: set[str] = set()
        self.unwritten: list[str] = []
        self.planned: set[str] = set()

    def pytest_sessionstart(self) -> None:
        """SIGTERM ends the run as Ctrl-C does: servers are stopped, the report is written."""
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, _interrupt)
            self.config.add_cleanup(partial(_restore, before))

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Of the folders that were added for the specs in them, nothing else is collected."""
        if collection_path in self.session.paths or collection_path in self.folders:
            return None
        asked = (collection_path, *collection_path.parents)
        return None if any(path in asked for path in self.user_arguments) else True

    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        if file_path not in self.session.paths:
            return None
        found: pytest.Collector = SpecFile.from_parent(parent, path=file_path)
        return found

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        parametrize(metafunc)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        if found := phase(item):
            item.add_marker(found)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.session.options.plan_only:
            live = [item for item in items if phase(item) in LIVE_PHASES]
            self.config.hook.pytest_deselected(items=live)
            items[:] = [item for item in items if item not in live]
        for item in items:
            if item.get_closest_marker("flaky") and phase(item) in LIVE_PHASES:
                raise pytest.UsageError(f"{_RERUN}: take the mark flaky from {item.nodeid}")
        items[:] = in_order(items, self.session.paths)
        self.planned = {
            item.nodeid for item in items if REQUIREMENT in item.stash and phase(item) == "plan"
        }

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if REQUIREMENT in item.stash:
            file = item.nodeid.partition("::")[0]
            attach_row(item, call, report, is_repeated=file in self.failed_servers)
            if call.excinfo and isinstance(call.excinfo.value, NotServing):
                self.failed_servers.add(file)
        hide_secrets(report)
        if self.config.pluginmanager.hasplugin("allure_listener") and (found := row_in(report)):
            from pytest_llmdeploy.report import allure  # noqa: PLC0415 - it is there, then

            allure.tell(found[1])
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, Any]:
        report = yield
        hide_secrets(report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: object) -> None:
        without_secrets(excrepr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.progress.clear()
        if (found := row_in(report)) is not None:
            path, row = found
            self.session.add_row(path, row)
            if file := junit_file(self.config):
                add_row(file, report, self.session.items(path).spec.name, row)
        if self.progress.reporter is not None:
            letters = partial(encodable, encoding=encoding(self.progress.reporter))
            report.longrepr = rewritten(report.longrepr, letters)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The plan is told when its last row is there, before anything is launched."""
        if nodeid in self.planned:
            self.planned.remove(nodeid)
            if not self.planned:
                self.progress.keep(self._plan_line())

    def _plan_line(self) -> str:
        found = [row for rows in self.session.rows.values() for row in rows.values()]
        plan = [row for row in found if row.phase == "plan"]
        bad = sum(not row.status.is_green for row in plan)
        checks = f"{len(plan)} check{'s' if len(plan) != 1 else ''}"
        failed = f", {bad} did not pass" if bad else ""
        return f"plan     {checks}{failed}, {self.session.seconds:.1f} s"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if _is_worker(self.config) or self.config.option.collectonly:
            return
        if exitstatus == pytest.ExitCode.OK and not self._may_be_green():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if file := junit_file(self.config):
            add_verdicts(file, self.session.checklists())
        self._write_reports()
        if self.unwritten:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for problem in self.unwritten:
            terminalreporter.write_line(f"ERROR: {problem}", red=True)
        if self.config.option.collectonly:
            return
        if os.environ.get("GITHUB_ACTIONS") == "true":
            terminalreporter.ensure_newline()
            for line in commands(self._annotations()):
                terminalreporter.write_line(encodable(line, encoding(terminalreporter)))
        if self.config.option.no_summary or self.config.get_verbosity() < _QUIETEST:
            return
        for checklist in self.session.checklists():
            write_checklist(terminalreporter, checklist, self.session.seconds)
        for path in self.session.options.reports if not self.unwritten else ():
            terminalreporter.write_line(f"report: {path}")

    def _annotations(self) -> list[Annotation]:
        """What is not green, at its line in the spec."""
        found: list[Annotation] = []
        for path in self.session.paths:
            file = self._in_repository(path)
            try:
                lines = self.session.lines(path)
            except SpecError as error:
                found += [
                    Annotation(
                        kind="error",
                        file=file,
                        line=problem.line,
                        title="not a valid spec",
                        message=redact(f"{problem.key}: {problem.message}"),
                    )
                    for problem in error.problems
                ]
                continue
            rows = self.session.rows.get(path, {}).values()
            found += [of_row(row, file, lines[row.id]) for row in rows if not row.status.is_green]
        return found

    def _in_repository(self, path: Path) -> str:
        """The path of a spec as GitHub knows it."""
        root = Path(os.environ.get("GITHUB_WORKSPACE", self.config.rootpath)).resolve()
        return path.relative_to(root).as_posix() if root in path.parents else path.as_posix()

    def _may_be_green(self) -> bool:
        """Whether the outcome may be 0: of what was checked, something was decided, and nothing was
        left open.
        """
        rows = [row for found in self.session.rows.values() for row in found.values()]
        statuses = [row.status for row in rows]
        decided = any(status.is_decided for status in statuses)
        return not statuses or (decided and all(status.is_green for status in statuses))

    def _write_reports(self) -> None:
        options = self.session.options
        writes = [(f"--deploy-report {path}", write_report, path) for path in options.reports]
        if options.summary:
            writes.append((f"{_SUMMARY} {options.summary}", add_summary, options.summary))
        for name, write, path in writes:
            try:
                write(path, self.session.checklists())
            except OSError as error:
                # The checklist is printed all the same.
                self.unwritten.append(f"{name} cannot be written: {error.strerror}")


def _interrupt(_number: int, _frame: object) -> None:
    msg = "SIGTERM"
    raise KeyboardInterrupt(msg)


def _restore(handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)


def _matches(base: Path, pattern: str) -> list[Path]:
    found = sorted(glob.glob(str(base / pattern), recursive=True))  # noqa: PTH207 - base may differ
    files = [Path(name).resolve() for name in found if Path(name).is_file()]
    if not files:
        hint = nearest_file(base / pattern)
        msg = f"--deploy-spec {pattern}: no such file{hint} (looked in {base})"
        raise pytest.UsageError(msg)
    return files


def _absolute(base: Path, argument: str) -> Path:
    return (base / argument.partition("::")[0]).resolve()


def _options(config: pytest.Config, base: Path) -> Options:
    reports = config.getoption("deploy_report") or config.getini("deploy_report")
    paths = [base / name for name in reports]
    for path in paths:
        if path.suffix not in FORMS:
            known = ", ".join(FORMS)
            msg = f"--deploy-report {path.name}: the suffix says the form, known is {known}"
            raise pytest.UsageError(msg)
        if not has_what_it_takes(path.suffix):
            msg = f"--deploy-report {path.name}: pip install 'pytest-llmdeploy[report]' first"
            raise pytest.UsageError(msg)
    url = config.getoption("deploy_url") or config.getini("deploy_url") or None
    try:
        url = checked_url(url) if url else None
    except ValueError as error:
        msg = f"--deploy-url: {error}"
        raise pytest.UsageError(msg) from None
    return Options(
        plan_only=config.getoption("deploy_plan_only"),
        introspect=config.getoption("deploy_introspect"),
        url=url,
        reports=paths,
        summary=Path(os.environ[_SUMMARY]) if os.environ.get(_SUMMARY) else None,
    )


def _refuse_contradictions(config: pytest.Config, options: Options, paths: Sequence[Path]) -> None:
    if options.url and len(paths) > 1:
        msg = (
            f"--deploy-url is one server, and there are {len(paths)} specs: give one --deploy-spec"
        )
        raise pytest.UsageError(msg)
    if options.url and options.introspect:
        msg = f"{NOT_OURS}: leave it out with --deploy-url"
        raise pytest.UsageError(msg)
    if options.plan_only or _is_worker(config):
        return
    if getattr(config.option, "dist", "no") != "no" or getattr(config.option, "tx", None):
        msg = "measuring in parallel is invalid: leave out -n, or check with --deploy-plan-only"
        raise pytest.UsageError(msg)
    if getattr(config.option, "reruns", None) or _ini(config, "reruns"):
        raise pytest.UsageError(f"{_RERUN}: leave out --reruns")


def _baseline(
    config: pytest.Config, base: Path, paths: Sequence[Path]
) -> Mapping[str, Earlier] | None:
    """The earlier run, when one is given; it must know every spec of this one."""
    given = config.getoption("deploy_baseline") or config.getini("deploy_baseline")
    if not given:
        return None
    from pytest_llmdeploy.baseline import BaselineError, read_baseline  # noqa: PLC0415 - if given

    try:
        found = read_baseline(base / given)
    except BaselineError as error:
        msg = f"--deploy-baseline {given}: {error}"
        raise pytest.UsageError(msg) from None
    for path in paths:
        # A file that is no valid spec is told of as any other.
        with suppress(SpecError):
            name = load_spec(path).name
            if name not in found:
                msg = f"--deploy-baseline {given}: no spec {name!r} in it: {nearest(name, found)}"
                raise pytest.UsageError(msg)
    return found


def _ini(config: pytest.Config, name: str) -> Any:
    """An option of a plugin that may not be there."""
    try:
        return config.getini(name)
    except ValueError:
        return None


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _registry(config: pytest.Config) -> Registry:
    offered: list[list[ModuleType]] = config.hook.pytest_llmdeploy_checks(config=config)
    hooked = (module for modules in offered for module in modules)
    try:
        return Registry([*_installed_checks(), *hooked])
    except DuplicateCheckError as error:
        raise pytest.UsageError(str(error)) from None


def _installed_checks() -> Iterator[ModuleType]:
    """The modules that installed packages offer, as pytest's own plugins are found."""
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        return
    # Where a package is found twice, as in a virtual environment above another, it is one.
    for point in sorted(set(entry_points(group=_GROUP))):
        pytest.register_assert_rewrite(point.module)
        try:
            yield point.load()
        except Exception as error:  # noqa: BLE001 - whatever somebody else's package raises
            package = point.dist.name if point.dist else point.name
            msg = (
                f"the package {package} offers checks in {point.value}, "
                f"which cannot be imported: {error}"
            )
            raise pytest.UsageError(msg) from None


def _import_checks(config: pytest.Config, path: Path) -> ModuleType:
    """A module of a user's checks, with pytest's assertion rewriting."""
    pytest.register_assert_rewrite(path.stem)
    return import_path(
        path,
        mode=ImportMode.importlib,
        root=config.rootpath,
        consider_namespace_packages=False,
    )


def _log_folder(config: pytest.Config) -> Path:
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:
        return config.rootpath / ".llmdeploy"
    try:
        return cache.mkdir("llmdeploy")
    except OSError as error:
        msg = f"the cache_dir of pytest, where the server's log goes: {error.strerror}"
        raise pytest.UsageError(msg) from None


def _take_over_arguments(config: pytest.Config, paths: Sequence[Path]) -> list[Path]:
    """Adds the specs to what pytest collects, as one argument for each folder: with positional
    arguments beside those, without them instead of the user's whole suite.
    """
    base = config.invocation_params.dir
    asked: list[str] = []
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        asked = list(config.args)
    given = {_absolute(base, argument) for argument in asked}
    folders = dict.fromkeys(str(path.parent) for path in paths if path not in given)
    config.args = [*asked, *folders]
    return sorted(given)
