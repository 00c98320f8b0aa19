"""What pytest loads in every run: the options and the fixtures.

Everything else is in `gate`, which is imported when there is a spec to check: without one,
nothing but pytest and the standard library is.
"""

from __future__ import annotations

import pytest

from pytest_llmdeploy import fixtures

_YAML = (".yaml", ".yml")
_MARKS = {
    "plan": "checks that need nothing but the spec",
    "host": "checks of this machine before the launch",
    "live": "checks of the running server, at rest and under load",
    "stopped": "checks of what is left when the server has been stopped",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llmdeploy", "LLM serving deployments")
    group.addoption(
        "--deploy-spec",
        action="append",
        default=[],
        metavar="PATH",
        help="A deployment spec to check (YAML; repeatable; globs).",
    )
    group.addoption(
        "--deploy-url",
        metavar="URL",
        help="Attach to the server at URL instead of launching one.",
    )
    group.addoption(
        "--deploy-plan-only",
        action="store_true",
        help="Check only what follows from the spec: no GPU, no server, no network.",
    )
    group.addoption(
        "--deploy-introspect",
        action="store_true",
        help="Add to the launched server what lets its workers tell of their memory.",
    )
    group.addoption(
        "--deploy-report",
        action="append",
        default=[],
        metavar="PATH",
        help="Write the report to PATH (.json, .md or .html; repeatable).",
    )
    group.addoption(
        "--deploy-baseline",
        metavar="PATH",
        help="Say what has changed since the run whose report (.json) is at PATH.",
    )
    parser.addini("deploy_spec", "Deployment specs to check.", type="args", default=[])
    parser.addini("deploy_url", "Attach to this server instead of launching one.", default="")
    parser.addini("deploy_baseline", "The report of a run to compare with.", default="")
    parser.addini("deploy_report", "Files to write the report to.", type="args", default=[])


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_llmdeploy import hookspecs  # noqa: PLC0415 - as pytest asks

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in _MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning} (set by pytest-llmdeploy)")
    config.pluginmanager.register(fixtures, "llmdeploy-fixtures")
    patterns: list[str] = config.getoption("deploy_spec") or config.getini("deploy_spec")
    if patterns or any(argument.partition("::")[0].endswith(_YAML) for argument in config.args):
        from pytest_llmdeploy.gate import open_gate  # noqa: PLC0415 - only with a spec

        open_gate(config, patterns)
