"""A report of an earlier run, as far as a later one is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmdeploy.spec.bounded import read_bounded

SCHEMA_VERSION = 1
# A thousand workloads of as many requests as a report keeps are no more.
_MOST_BYTES = 512 * 1024 * 1024


class BaselineError(Exception):
    """A file is not a report to compare with; the text says why."""


class Requests(msgspec.Struct, frozen=True):
    """Every request of a workload as columns, in order of arrival; ms, None where it has none."""

    outcome: list[str] = []
    ttft: list[float | None] = []
    tpot: list[float | None] = []
    e2el: list[float | None] = []


class Sent(msgspec.Struct, frozen=True):
    """A workload as it was served; `sent` says what it was, None in reports that do not tell."""

    sent: dict[str, str] | None = None
    requests: Requests | None = None
    interrupted: str | None = None
    invalid: list[str] = []


class Device(msgspec.Struct, frozen=True):
    """A device at rest."""

    name: str
    used_bytes: float | None = None


class Recording(msgspec.Struct, frozen=True):
    """Devices under load: columns of each, by its name."""

    series: dict[str, dict[str, list[float | None]]] = {}


class Devices(msgspec.Struct, frozen=True):
    """What was seen of the devices."""

    at_rest: list[Device] | None = None
    under_load: Recording | None = None


class KvCache(msgspec.Struct, frozen=True):
    """The KV cache of one copy, as planned."""

    tokens: int | None = None


class Planned(msgspec.Struct, frozen=True):
    """What followed from the spec."""

    kv_cache: KvCache | None = None


class Line(msgspec.Struct, frozen=True):
    """A row: its node id, its item and its status."""

    id: str
    item: str
    status: str


class Earlier(msgspec.Struct, frozen=True):
    """A spec in a report."""

    name: str
    verdict: str
    rows: list[Line] = []
    plan: Planned | None = None
    traffic: dict[str, Sent] | None = None
    devices: Devices | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Earlier:
        """From an entry of `specs`."""
        return msgspec.convert(entry, cls)


class _Version(msgspec.Struct, frozen=True):
    schema_version: int


class _Report(msgspec.Struct, frozen=True):
    specs: list[Earlier]


def read_baseline(path: Path) -> dict[str, Earlier]:
    """The specs of a report, by name.

    Raises:
        BaselineError: when it is not a report of this schema_version.
    """
    try:
        text = read_bounded(path, _MOST_BYTES)
    except FileNotFoundError:
        raise BaselineError("there is no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BaselineError(f"it cannot be read: {reason}") from None
    if len(text) > _MOST_BYTES:
        raise BaselineError(f"it is larger than {_MOST_BYTES // 1024**2} MiB")
    try:
        version = msgspec.json.decode(text, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BaselineError(
                f"it has schema_version {version}, this version reads {SCHEMA_VERSION}"
            )
        specs = msgspec.json.decode(text, type=_Report).specs
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BaselineError(f"it is not a report in JSON: {error}") from None
    return {spec.name: spec for spec in specs}
