"""Quantities are read as people write them, exactly, and refused with what is allowed."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.units import Bytes, Duration, Fraction, Percentile, Rate, show

QUANTITIES = pytest.mark.parametrize("kind", [Bytes, Duration, Rate, Fraction])


class TestParse:
    """What a text means."""

    @pytest.mark.parametrize(
        ("kind", "raw", "value"),
        [
            (Bytes, "10GiB", 10 * 1024**3),
            (Bytes, "10Gi", 10 * 1024**3),
            (Bytes, "10GB", 10 * 1000**3),
            (Bytes, "1.5 KiB", 1536),
            (Bytes, "1_000", 1000),
            (Bytes, 4096, 4096),
            (Bytes, "2.01GB", 2_010_000_000),
            (Duration, "500ms", 500),
            (Duration, "1.005s", 1005),
            (Duration, "10min", 600_000),
            (Duration, "250us", 0.25),
            (Duration, "250µs", 0.25),
            (Rate, "8/s", 8),
            (Rate, "480/min", 8),
            (Rate, "3600/h", 1),
            (Rate, 2.5, 2.5),
            (Fraction, "85%", 0.85),
            (Fraction, 0.85, 0.85),
            (Fraction, " 5 % ", 0.05),
            (Fraction, "0.7%", 0.007),
            (Fraction, "100%", 1),
        ],
    )
    def test_value(self, kind: Any, raw: object, value: float) -> None:
        """A text or a bare number is exactly the value that it names."""
        assert kind.parse(raw) == value

    def test_every_whole_percentage_is_exact(self) -> None:
        """7 % is the float 0.07, not 0.07000000000000001, and so for all of them."""
        assert [Fraction.parse(f"{n}%") for n in range(101)] == [n / 100 for n in range(101)]

    @settings(deadline=None)
    @given(st.integers(0, 10**7))
    def test_decimals_of_a_byte_unit_are_exact(self, hundredths: int) -> None:
        """2.01GB does not lose a byte to binary fractions."""
        assert Bytes.parse(f"{hundredths / 100:.2f}GB") == hundredths * 10**7

    def test_a_duration_knows_its_seconds(self) -> None:
        """Durations are milliseconds inside."""
        assert Duration.parse("1.5s").seconds == 1.5

    @QUANTITIES
    def test_a_parsed_value_is_parsed_once(self, kind: Any) -> None:
        """Parsing what was parsed before changes nothing."""
        assert kind.parse(kind(1)) == kind(1)


class TestRefusals:
    """What is not a quantity is refused with what would be one."""

    @pytest.mark.parametrize(
        ("kind", "raw", "text"),
        [
            (Bytes, "8 gigs", "'8 gigs' is not a size: write for instance \"8GiB\" (units: B, "),
            (Bytes, True, "True is not a size"),
            (Bytes, None, "None is not a size"),
            (Bytes, "-1GiB", "'-1GiB' is out of range: write a size 0 or more"),
            (Duration, 500, '500 is not a duration: write for instance "500ms" (units: us, '),
            (Duration, "500", "'500' is not a duration"),
            (Duration, "1:30", "'1:30' is not a duration"),
            (Duration, "5 sec", "'5 sec' is not a duration"),
            (Duration, "-1s", "'-1s' is out of range: write a duration 0 or more"),
            (Rate, "8/d", "'8/d' is not a rate: write for instance \"8/s\""),
            (Rate, math.nan, "nan is out of range: write a rate 0 or more"),
            (Rate, math.inf, "inf is out of range: write a rate 0 or more"),
            (Fraction, 85, "85 is out of range: write a fraction from 0 to 1"),
            (Fraction, "101%", "'101%' is out of range: write a fraction from 0 to 1"),
            (Fraction, "%", "'%' is not a fraction: write for instance \"85%\""),
        ],
    )
    def test_text(self, kind: Any, raw: object, text: str) -> None:
        """The error says what was found, an example and the units."""
        with pytest.raises(ValueError, match="write") as caught:
            kind.parse(raw)
        assert str(caught.value).startswith(text)

    @QUANTITIES
    @pytest.mark.parametrize("raw", ["9" * 5000, "1e999", "1e9999999999", 10**400], ids=repr)
    def test_what_no_float_holds_is_a_value_error(self, kind: Any, raw: object) -> None:
        """An absurd number is refused like any other, without overflow or delay."""
        with pytest.raises(ValueError, match=r"out of range|is not a"):
            kind.parse(raw)

    @QUANTITIES
    @settings(deadline=None)
    @given(raw=st.text() | st.from_regex(r"[+-]?[\d_.]+(e-?\d+)?\s?[a-zA-Z/%]{0,3}"))
    def test_any_text_is_a_value_or_a_value_error(self, kind: Any, raw: str) -> None:
        """Nothing but ValueError escapes, and what is accepted is finite and not negative."""
        try:
            value = kind.parse(raw)
        except ValueError:
            return
        assert 0 <= value < math.inf


class TestShow:
    """What a person reads."""

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (8 * 1024**3, "B", "8 GiB"),
            (512, "B", "512 B"),
            (412.34, "ms", "412.3 ms"),
            (1000, "ms", "1,000 ms"),
            (161_000, "ms", "161 s"),
            (8, "1/s", "8/s"),
            (0.853, "fraction", "85.3 %"),
            (0.07, "fraction", "7 %"),
            (1204, "requests", "1,204 requests"),
            (3, "", "3"),
            (math.inf, "ms", "unbounded"),
            (math.nan, "B", "unbounded"),
        ],
    )
    def test_text(self, value: float, unit: str, text: str) -> None:
        """Four digits, thousands separated, in the unit that fits."""
        assert show(value, unit) == text

    @QUANTITIES
    @settings(deadline=None)
    @given(value=st.floats(0, 1) | st.floats(1, 1e15))
    def test_what_is_printed_reads_back(self, kind: Any, value: float) -> None:
        """A printed quantity is the same quantity, to the digits that are shown."""
        quantity = kind(min(value, kind.highest))
        again = kind.parse(str(quantity).replace(",", ""))
        assert again == pytest.approx(quantity, rel=0.06, abs=1e-300)


class TestPercentile:
    """Percentiles by their usual names."""

    @pytest.mark.parametrize(
        ("name", "fraction"), [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.999", 0.99999)]
    )
    def test_fraction(self, name: str, fraction: float) -> None:
        """The name says the fraction, exactly, and prints as it was written."""
        percentile = Percentile.parse(name)
        assert (percentile.fraction, str(percentile)) == (fraction, name)

    @pytest.mark.parametrize("raw", ["p0", "p100", "P99", "99", "p-1", "p٩٩", "p99.", "max", 100])
    def test_refusal(self, raw: object) -> None:
        """What is not a percentile is refused with examples."""
        with pytest.raises(ValueError, match="is not a percentile: write for instance p50, p99"):
            Percentile.parse(raw)
