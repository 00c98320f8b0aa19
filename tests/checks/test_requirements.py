"""From a spec to its items: values by annotation, what nobody judges, and what is waived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.checks import Expect, Registry, Requirement, check, check_of, requirements
from pytest_llmdeploy.spec import SpecError, load_spec
from pytest_llmdeploy.units import Bytes, Duration, Fraction, Percentile
from tests.specs import STEADY, write_spec

_UTILIZATION = "memory_utilization"
UTILIZATION = {f"planned_{_UTILIZATION}", _UTILIZATION, f"{_UTILIZATION}_under_load"}


class Limits(BaseModel):
    """A record of somebody's own."""

    first: Duration
    retries: int = 0


def own(annotation: Any) -> Registry:
    """The built-in checks, and one for `require.team.limit` with this annotation."""

    def limit(required: Any, expect: Expect) -> None:
        """Somebody's own check."""

    limit.__annotations__["required"] = annotation
    limit.__annotations__["expect"] = Expect
    registry = Registry()
    found = check_of(check("Limit", require="team.limit")(limit))
    assert found is not None
    registry.add(found)
    return registry


@pytest.fixture
def items(tmp_path: Path) -> Callable[..., list[Requirement]]:
    """The items of a spec file that is written with these sections."""

    def found(registry: Registry | None = None, **sections: Any) -> list[Requirement]:
        path = write_spec(tmp_path / "a.yaml", **sections)
        return requirements(load_spec(path), registry or Registry())

    return found


@pytest.fixture
def refused(items: Callable[..., list[Requirement]], tmp_path: Path) -> Callable[..., str]:
    """What is said of such a spec when it is refused, without the folder."""

    def text(registry: Registry | None = None, **sections: Any) -> str:
        with pytest.raises(SpecError) as error:
            items(registry, **sections)
        return str(error.value).replace(f"{tmp_path}/", "")

    return text


@pytest.mark.parametrize(
    ("annotation", "written", "value"),
    [
        (Duration, "1.5s", Duration(1500)),
        (Bytes, "2KiB", Bytes(2048)),
        (Fraction, "5%", Fraction(0.05)),
        (int, 3, 3),
        (float, 0.5, 0.5),
        (float, 3, 3.0),
        (str, "blue", "blue"),
        (Limits, {"first": "2s"}, Limits(first=Duration(2000))),
        (None, ["as", "it", "is"], ["as", "it", "is"]),
    ],
    ids=str,
)
def test_own_values(
    items: Callable[..., list[Requirement]], annotation: Any, written: Any, value: Any
) -> None:
    """A value of an own namespace is parsed by the annotation of `required`."""
    found = items(own(annotation), require={"team": {"limit": written}})
    item = next(r for r in found if r.check.name == "limit")
    assert item.value == value
    assert annotation is None or isinstance(item.value, annotation)
    assert item.key == "require.team.limit"


@pytest.mark.parametrize(
    ("annotation", "written"),
    [(Duration, "soon"), (int, "3"), (int, True), (float, "x"), (Limits, {"first": 2}),
     (Limits, {})],
    ids=str,
)  # fmt: skip
def test_own_values_that_do_not_fit(
    refused: Callable[..., str], annotation: Any, written: Any, snapshot: SnapshotAssertion
) -> None:
    """A value that the annotation does not allow is an error at its line."""
    assert refused(own(annotation), require={"team": {"limit": written}}) == snapshot


@pytest.mark.parametrize(
    "sections",
    [
        {"require": {"memry": {"max_utilization": "80%"}}},
        {"require": {"memry": 5}},
        {"require": {"team": {"limt": 5}}},
        {"require": {"team": {"limit": None}}},
    ],
    ids=["namespace", "no-mapping", "key", "empty"],
)
def test_nothing_is_silently_unjudged(
    refused: Callable[..., str], sections: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    """What is required and no check judges is an error, not a pass."""
    assert refused(own(int), **sections) == snapshot


def test_a_check_is_multiplied_by_its_placeholders(
    items: Callable[..., list[Requirement]],
) -> None:
    """One item for each workload and percentile, named after both."""
    workloads = [
        {**STEADY, "name": name, "require": {"ttft": {"p50": "1s", "p99": "2s"}}} for name in "ab"
    ]
    found = [item for item in items(workloads=workloads) if item.check.name == "ttft"]
    assert [item.id for item in found] == ["a-p50", "a-p99", "b-p50", "b-p99"]
    assert found[1].item == "TTFT p99, a"
    assert found[1].value == Duration(2000)
    assert found[3].key == "workloads.b.require.ttft.p99"
    assert isinstance(found[1].placeholders["percentile"], Percentile)


def test_when_decides_what_always_runs(items: Callable[..., list[Requirement]]) -> None:
    """Devices that only GPUs have are not looked for on the CPU."""
    names = {item.check.name for item in items()}
    assert "devices_present" not in names
    assert {"feasible", "ranks_up", "model_served", "server_limits", "clean_stop"} <= names


@pytest.mark.parametrize(
    ("waiver", "waived"),
    [
        ("memory.max_utilization", UTILIZATION),
        ("memory", UTILIZATION),
        ("memory_utilization", {"memory_utilization"}),
        ("workloads.steady.require.ttft.p50", {"ttft"}),
        ("workloads.steady.require", {"ttft"}),
        ("feasible", {"feasible"}),
    ],
)
def test_waivers(items: Callable[..., list[Requirement]], waiver: str, waived: set[str]) -> None:
    """A waiver names a key, the beginning of one, or a check, and waives that only."""
    require = {"memory": {"max_utilization": "80%"}, "devices": 2}
    found = items(require=require, workloads=[STEADY], waive={waiver: "because"})
    assert {item.check.name for item in found if item.waived == "because"} == waived
    assert {item.waived for item in found} == {"", "because"}


@pytest.mark.parametrize("waiver", ["memory.max_utilisation", "interconnect", "mem", ""])
def test_idle_waivers(
    refused: Callable[..., str], waiver: str, snapshot: SnapshotAssertion
) -> None:
    """A waiver of what is not required is an error that names what is."""
    require = {"memory": {"max_utilization": "80%"}}
    assert refused(require=require, waive={waiver: "because"}) == snapshot


def test_every_fault_is_said(refused: Callable[..., str]) -> None:
    """One fault does not hide another."""
    text = refused(
        own(int), require={"team": {"limit": "x"}, "temperature": 3}, waive={"devices": "no"}
    )
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "require.team.limit",
        "require.temperature",
        "waive.devices",
    ]
