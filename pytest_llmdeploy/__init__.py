"""pytest-llmdeploy: decide, with evidence, whether an LLM serving deployment is ready.

The public names are resolved when they are used, so that importing the package is free.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmdeploy.checks import Expect, check
    from pytest_llmdeploy.evidence import Evidence, Row, Status
    from pytest_llmdeploy.load import Traffic
    from pytest_llmdeploy.plan import Plan
    from pytest_llmdeploy.probes import Devices, Host
    from pytest_llmdeploy.serving import Server, Stopped
    from pytest_llmdeploy.spec import Spec, Workload
    from pytest_llmdeploy.units import Bytes, Duration, Fraction, Percentile, Rate

__version__ = "0.1.0"

_HOMES = {
    "checks": ("Expect", "check"),
    "evidence": ("Evidence", "Row", "Status"),
    "load": ("Traffic",),
    "plan": ("Plan",),
    "probes": ("Devices", "Host"),
    "serving": ("Server", "Stopped"),
    "spec": ("Spec", "Workload"),
    "units": ("Bytes", "Duration", "Fraction", "Percentile", "Rate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Bytes",
    "Devices",
    "Duration",
    "Evidence",
    "Expect",
    "Fraction",
    "Host",
    "Percentile",
    "Plan",
    "Rate",
    "Row",
    "Server",
    "Spec",
    "Status",
    "Stopped",
    "Traffic",
    "Workload",
    "check",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
