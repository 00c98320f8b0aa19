"""Readings are judged by their worst entry, and what was not read is never a pass."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Evidence, Judgement, Status
from pytest_llmdeploy.units import Bytes
from pytest_llmdeploy.verdict import Readings

Judge = Callable[[Readings], Judgement]
JUDGES: dict[str, Judge] = {
    "at_most": lambda readings: readings.at_most(1e9),
    "at_least": lambda readings: readings.at_least(-1e9),
    "equals": lambda readings: readings.equals(1),
    "within": lambda readings: readings.within(1e9),
    "hold": lambda readings: readings.hold("pairs"),
    "among": lambda readings: readings.among([0, 1], {}),
    "reach": lambda readings: readings.reach(Readings.of(dict.fromkeys(readings.entries, 0))),
    "sound": lambda readings: readings.sound("no fault", lambda _name, _value: "", "none"),
}
every_judge = pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES.keys())


def devices(**values: float) -> Readings:
    """One reading per device."""
    return Readings.of(values)


class TestComparisons:
    """at_most, at_least and equals."""

    def test_at_most_names_the_highest(self) -> None:
        """One device over the limit fails all, and is named."""
        judgement = devices(gpu0=70, gpu1=91, gpu2=80).at_most(90, "on each GPU")
        assert judgement.status is Status.FAIL
        assert (judgement.requirement, judgement.result) == ("≤ 90 on each GPU", "91 (gpu1)")
        assert (judgement.measured, judgement.evidence["worst"]) == (91, "gpu1")
        assert judgement.margin == pytest.approx(-1 / 90)

    def test_at_least_names_the_lowest(self) -> None:
        """The requirement prints in the unit of what was read."""
        judgement = Readings.of({"gpu0": Bytes(9 * 1024**3), "gpu1": Bytes(7 * 1024**3)}).at_least(
            Bytes(8 * 1024**3)
        )
        assert judgement.status is Status.FAIL
        assert (judgement.requirement, judgement.result) == ("≥ 8 GiB", "7 GiB (gpu1)")
        assert judgement.margin == pytest.approx(-1 / 8)

    @pytest.mark.parametrize("odd", [6, 10])
    def test_equals_names_the_one_furthest_away(self, odd: int) -> None:
        """Too few and too many both fail."""
        judgement = devices(a=8, b=odd, c=7).equals(8)
        assert (judgement.status, judgement.result) == (Status.FAIL, f"{odd} (b)")

    def test_the_limit_itself_passes(self) -> None:
        """Limits are inclusive, both ways."""
        readings = Readings.of(8)
        judgements = [readings.at_most(8), readings.at_least(8), readings.equals(8)]
        assert [judgement.status for judgement in judgements] == [Status.PASS] * 3

    def test_a_single_value_has_no_name(self) -> None:
        """Where there is one value, nothing is named."""
        assert Readings.of(3).at_most(2).result == "3"

    @settings(deadline=None)
    @given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(-1e6, 1e6))
    def test_passes_if_and_only_if_every_entry_does(
        self, values: list[float], limit: float
    ) -> None:
        """The worst entry decides for all."""
        readings = Readings.of({str(n): value for n, value in enumerate(values)})
        assert readings.at_most(limit).status.is_green == all(v <= limit for v in values)
        assert readings.at_least(limit).status.is_green == all(v >= limit for v in values)
        assert readings.equals(limit).status.is_green == all(v == limit for v in values)


class TestWithin:
    """Balance, as max |x − mean| / mean."""

    @pytest.mark.parametrize(
        ("values", "deviation", "worst"),
        [
            ([1.0] * 7 + [0.8], 0.179, "7"),
            ([1.2] + [1.0] * 7, 0.171, "0"),
            ([1.05] * 4 + [0.95] * 4, 0.05, "0"),
            ([1.0] * 7 + [0.0], 1.0, "7"),
            ([15, 15, 16, 15], 0.049, "2"),
        ],
        ids=["one-slow", "one-busy", "two-halves", "one-idle", "61-layers"],
    )
    def test_deviation(self, values: list[float], deviation: float, worst: str) -> None:
        """The published figures of eight ranks, and the rank that is at fault."""
        judgement = Readings.of({str(n): v for n, v in enumerate(values)}).within(0.05 + 1e-9)
        assert judgement.measured == pytest.approx(deviation, abs=5e-4)
        assert judgement.evidence["worst"] == worst
        assert judgement.status.is_green == (deviation <= 0.05)

    def test_the_row_says_the_deviation(self) -> None:
        """Requirement and result are fractions whatever was read; the evidence is what was read."""
        judgement = devices(gpu0=90, gpu1=110).within(0.05, "in each stage")
        assert judgement.requirement == "within 5 % in each stage"
        assert judgement.result == "10 % (gpu0)"
        assert judgement.unit == "fraction"
        assert judgement.evidence["mean"] == 100
        assert judgement.evidence["readings"]["gpu1"]["value"] == 110

    def test_all_idle_is_balanced(self) -> None:
        """Nothing anywhere deviates from nothing."""
        assert devices(a=0, b=0).within(0.0).status is Status.PASS

    @pytest.mark.parametrize("values", [(-1, -3), (-1, 1)])
    def test_a_mean_that_is_not_positive_hides_nothing(self, values: tuple[int, int]) -> None:
        """Negative headrooms deviate as much as positive ones."""
        assert devices(a=values[0], b=values[1]).within(0.05).status is Status.FAIL


class TestHold:
    """Yes or no for every entry."""

    def test_names_what_is_missing(self) -> None:
        """The count, and the first that does not hold."""
        judgement = devices(ab=1, ac=0, bc=0).hold("pairs")
        assert judgement.status is Status.FAIL
        assert (judgement.requirement, judgement.result) == ("all 3 pairs", "1 of 3, not ac")
        assert judgement.evidence["missing"] == ["ac", "bc"]

    def test_all_hold(self) -> None:
        """Every entry is 1."""
        judgement = devices(ab=1, ac=1).hold("pairs")
        assert (judgement.status, judgement.result) == (Status.PASS, "2 of 2")

    def test_one_that_stands_for_all(self) -> None:
        """Where nothing can be read, nobody knows how many there are."""
        missing = Evidence(None, "", "NVML", problem="unsupported: there is no NVML")
        judgement = Readings.of({"NVML": missing}).hold("pairs")
        assert (judgement.status, judgement.requirement) == (Status.ERROR, "all pairs")


class TestWords:
    """Codes, the most that something can be, and faults in words."""

    def test_a_code_is_a_word(self) -> None:
        """A code that is not known is said as it is."""
        words = {0: "default", 3: "exclusive"}
        judgement = devices(a=0, b=3, c=9).among([0], words, "on each")
        assert judgement.status is Status.FAIL
        assert (judgement.requirement, judgement.result) == (
            "default on each",
            "c: code 9, and 1 more",
        )
        assert judgement.evidence["faults"] == {"b": "exclusive", "c": "code 9"}

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=1))
    def test_reaches_if_and_only_if_every_entry_does(self, pairs: list[tuple[int, int]]) -> None:
        """The lowest of those that fall short is named."""
        reached = Readings.of({str(n): value for n, (value, _) in enumerate(pairs)})
        judgement = reached.reach(Readings.of({str(n): most for n, (_, most) in enumerate(pairs)}))
        short = [value for value, most in pairs if value < most]
        assert judgement.status.is_green == (not short)
        assert not short or judgement.measured == min(short)

    def test_what_cannot_be_known_of_the_most(self) -> None:
        """Without the most that it can be, nothing is reached."""
        lost = Evidence(None, "lanes", "nvml", problem="unsupported: no such field")
        judgement = devices(a=16).reach(Readings.of({"a": lost}))
        assert judgement.status is Status.ERROR

    def test_the_same_reason_is_said_once(self) -> None:
        """Eight devices that say the same are one reason."""
        lost = Evidence(None, "", "nvml", problem="unsupported: here")
        judgement = Readings.of(dict.fromkeys("abc", lost) | {"d": 1}).at_most(1)
        assert judgement.result == "unsupported: here (a and 2 more)"


class TestUnread:
    """Nothing read is never a pass."""

    @every_judge
    def test_an_unread_entry_is_an_error(self, judge: Judge) -> None:
        """One device that can't be read spoils the row, which says why and which."""
        lost = Evidence(None, "B", "nvml", problem="lost: fallen off the bus")
        judgement = judge(Readings.of({"gpu0": 1, "gpu3": lost}))
        assert judgement.status is Status.ERROR
        assert judgement.result == "lost: fallen off the bus (gpu3)"

    @every_judge
    def test_nothing_at_all_is_an_error(self, judge: Judge) -> None:
        """No devices do not satisfy every requirement on devices."""
        judgement = judge(Readings.of({}))
        assert (judgement.status, judgement.result) == (Status.ERROR, "nothing could be read")

    @every_judge
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [0, 1])
    def test_what_is_no_number_is_an_error(self, judge: Judge, value: float, place: int) -> None:
        """NaN compares false with everything; it must not hide behind an entry that passes."""
        entries: list[tuple[str, float | Evidence]] = [("good", 1.0)]
        entries.insert(place, ("odd", value))
        judgement = judge(Readings.of(dict(entries)))
        assert (judgement.status, judgement.result) == (Status.ERROR, "not a finite number (odd)")
