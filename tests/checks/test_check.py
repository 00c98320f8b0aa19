"""`@check`, the registry, and `expect`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.checks import (
    DuplicateCheckError,
    Expect,
    NotPassed,
    Registry,
    Requirement,
    check,
    check_of,
    requirements,
)
from pytest_llmdeploy.checks.expect import DecidedTwiceError
from pytest_llmdeploy.checks.registry import checks_in
from pytest_llmdeploy.evidence import Evidence, Judgement, Status
from pytest_llmdeploy.spec import SpecError
from pytest_llmdeploy.units import Bytes
from pytest_llmdeploy.verdict import Quantile, Rule
from tests.plan.deployments import made

HINT = "use more devices"


@check("Own headroom", hint=HINT)
def own_headroom(expect: Expect) -> None:
    """A check of somebody's own."""
    expect(1).at_least(1)


def headroom() -> Callable[..., None]:
    """Another function of the same name, from another place."""

    @check("Own headroom")
    def own_headroom(expect: Expect) -> None:
        """Not the same check."""
        expect(1).at_least(2)

    return own_headroom


def module(name: str, **functions: Any) -> ModuleType:
    """A module that holds these functions."""
    made = ModuleType(name)
    vars(made).update(functions)
    return made


class TestDecorator:
    """What makes a function a check, and what it refuses."""

    def test_it_only_attaches(self) -> None:
        """The function stays what it was, and carries its record."""
        found = check_of(own_headroom)
        assert found is not None
        assert found.function is own_headroom
        assert (found.name, found.item, found.family) == (
            "own_headroom",
            "Own headroom",
            "test_check",
        )
        assert found.place.startswith(__file__)

    def test_without_expect(self) -> None:
        """A check that can decide nothing is refused where it is written."""
        with pytest.raises(TypeError, match="'silent' must ask for `expect`"):

            @check("Silent")
            def silent() -> None:
                """Decides nothing."""

    def test_when_and_require(self) -> None:
        """A check that does not apply judges nothing: what the spec requires is then an error."""

        def judge(required: int, expect: Expect) -> None:
            """At most so many."""
            expect(1).at_most(required)

        registry = Registry()
        applies = check("Both", require="team.limit", when=lambda spec: spec.name == "a")(judge)
        registry.add(check_of(applies) or pytest.fail("not a check"))
        required = {"team": {"limit": 3}}
        found = requirements(made(name="a", require=required), registry)
        assert "judge" in {requirement.check.name for requirement in found}
        with pytest.raises(SpecError, match="says nothing"):
            requirements(made(name="b", require=required), registry)

    def test_no_check(self) -> None:
        """Any other function is none."""
        assert check_of(module) is None


class TestRegistry:
    """Every check has one name, and none gets lost."""

    def test_two_of_a_name(self) -> None:
        """Two functions of the same name are an error that says where both are."""
        with pytest.raises(DuplicateCheckError) as error:
            Registry([module("a", f=own_headroom), module("b", f=headroom())])
        first, second = check_of(own_headroom), check_of(headroom())
        assert first is not None
        assert second is not None
        assert str(error.value) == (
            f"two checks are called 'own_headroom': {first.place} and {second.place}"
        )

    def test_two_of_a_name_in_one_module(self) -> None:
        """Nor may one module hold two, under whatever names."""
        with pytest.raises(DuplicateCheckError, match="'own_headroom'"):
            Registry().extended([module("a", f=own_headroom, g=headroom())])

    def test_the_name_of_a_built_in(self) -> None:
        """A user's check does not replace a built-in one."""

        @check("Mine")
        def memory_headroom(expect: Expect) -> None:
            """Always good."""
            expect(1).at_least(0)

        with pytest.raises(DuplicateCheckError, match=r"checks/memory\.py.*test_check\.py"):
            Registry().extended([module("mine", f=memory_headroom)])

    def test_the_same_function_again(self) -> None:
        """A check that several modules import, or one twice, is one check."""
        modules = [module("a", f=own_headroom, g=own_headroom), module("b", f=own_headroom)]
        names = [found.name for found in Registry().extended(modules)]
        assert names.count("own_headroom") == 1

    def test_the_original_is_not_extended(self) -> None:
        """The checks of one spec do not show in another."""
        registry = Registry()
        registry.extended([module("a", f=own_headroom)])
        assert "own_headroom" not in {found.name for found in registry}

    def test_order(self) -> None:
        """Checks come in the order of the text, not of the names."""
        later = headroom()
        found = checks_in(module("a", a=later, z=own_headroom))
        assert [record.function for record in found] == [own_headroom, later]


@pytest.fixture
def expect() -> Expect:
    """What the check of this module gets."""
    found = check_of(own_headroom)
    assert found is not None
    return Expect(Requirement(found))


class TestExpect:
    """One comparison, one row."""

    def test_two_decisions(self, expect: Expect) -> None:
        """A second comparison is an error, also after a pass."""
        expect(2).at_most(3)
        with pytest.raises(DecidedTwiceError, match="'own_headroom' decides twice"):
            expect(2).at_most(3)

    def test_waiting_evidence_decides_nothing(self, expect: Expect) -> None:
        """Evidence that is compared with nothing leaves no judgement behind."""
        expect(2)
        assert expect.judgement is None

    @pytest.mark.parametrize(
        ("compare", "status"),
        [
            (lambda e: e(3).at_most(3), Status.PASS),
            (lambda e: e(3).at_least(4), Status.FAIL),
            (lambda e: e(3).equals(3), Status.PASS),
            (lambda e: e({"a": 9, "b": 11}).within(0.1), Status.PASS),
            (lambda e: e({"a": 9, "b": 11}).within(0.05), Status.FAIL),
            (lambda e: e({"a": 1, "b": 0}).hold(), Status.FAIL),
            (lambda e: e({}).hold(), Status.ERROR),
            (lambda e: e(Evidence(None, "B", "x", problem="lost: x")).at_most(1), Status.ERROR),
            (lambda e: e(Quantile([1.0] * 3, Rule(0.99))).at_most(2), Status.INCONCLUSIVE),
        ],
        ids=[
            "at-most",
            "at-least",
            "equals",
            "within",
            "not-within",
            "not-held",
            "nothing-read",
            "unread",
            "too-few",
        ],
    )
    def test_comparisons(
        self, expect: Expect, compare: Callable[[Expect], None], status: Status
    ) -> None:
        """A test passes with a PASS, and with nothing else."""
        if status is Status.PASS:
            compare(expect)
        else:
            with pytest.raises(NotPassed):
                compare(expect)
        assert expect.judgement is not None
        assert expect.judgement.status is status
        assert (expect.judgement.hint != "") == (status in {Status.FAIL, Status.INCONCLUSIVE})

    def test_a_percentile_is_an_upper_limit(self, expect: Expect) -> None:
        """Latencies can't be required to be long."""
        with pytest.raises(TypeError, match="only be compared with at_most"):
            expect(Quantile([1.0], Rule(0.99))).at_least(1)

    def test_text_of_a_failure(self, expect: Expect, snapshot: SnapshotAssertion) -> None:
        """What was required, what was found, where it was read, and what to change."""
        read = {f"GPU {i}": Evidence(i * 1024**3, "B", "NVML") for i in (2, 1, 3)}
        with pytest.raises(NotPassed) as failure:
            expect(read, "on each device").at_least(Bytes.parse("2GiB"))
        assert str(failure.value) == snapshot

    def test_the_judgements_own_hint_goes_first(self, expect: Expect) -> None:
        """What is known of this failure is better than what is known of the check."""
        judgement = Judgement(status=Status.FAIL, requirement="1", result="2", hint="do that")
        with pytest.raises(NotPassed, match="do that"):
            expect.judge(judgement)
