"""The hooks that this plugin offers to others."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest


@pytest.hookspec
def pytest_llmdeploy_checks(config: pytest.Config) -> Sequence[ModuleType]:  # type: ignore[empty-body]
    """Return modules whose functions under `@check` every spec may use.

    They are known in addition to the built-in ones; two different checks of one name are an error.
    """
