"""Bytes, durations, rates and fractions: parsing what people write, printing what they read.

Inside the package, times are milliseconds, sizes bytes, rates per second, ratios fractions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*([a-zA-Zµ/%]*)", re.ASCII)
_ENORMOUS = 1e18


def _exact(number: str, scale: float) -> Decimal:
    """`number` × `scale` as people calculate it: in floats, 7 × 0.01 is not 0.07."""
    value = Decimal(number.replace("_", ""))
    return value * round(scale) if scale >= 1 else value / round(1 / scale)


class _Quantity:
    """What `Bytes`, `Duration`, `Rate` and `Fraction` share: one parser, one printer."""

    unit: ClassVar[str]
    noun: ClassVar[str]
    scales: ClassVar[Mapping[str, float]]
    example: ClassVar[str]
    bare_numbers: ClassVar[bool] = True
    highest: ClassVar[float] = _ENORMOUS

    @classmethod
    def parse(cls, raw: object) -> Self:
        """The quantity that `raw` (a number or a text such as "500ms") says.

        Raises:
            ValueError: with what is allowed, when `raw` is not such a quantity.
        """
        if isinstance(raw, cls):
            return raw
        value = cls._value(raw)
        if not 0 <= value <= cls.highest:
            bounds = "0 or more" if cls.highest == _ENORMOUS else f"from 0 to {cls.highest:g}"
            msg = f"{raw!r} is out of range: write a {cls.noun} {bounds}"
            raise ValueError(msg)
        return cls(value)  # type: ignore[call-arg]

    @classmethod
    def _value(cls, raw: object) -> float | Decimal:
        if cls.bare_numbers and isinstance(raw, int | float) and not isinstance(raw, bool):
            return raw
        match = _NUMBER.fullmatch(raw.strip()) if isinstance(raw, str) else None
        scale = cls.scales.get(match[2]) if match else None
        if match and scale is not None:
            return _exact(match[1], scale)
        if match and not match[2] and cls.bare_numbers:
            return _exact(match[1], 1)
        units = ", ".join(cls.scales)
        msg = f"{raw!r} is not a {cls.noun}: write for instance {cls.example}"
        raise ValueError(f"{msg} (units: {units})")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415 - importing the package is free

        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: GetJsonSchemaHandler) -> Any:
        kinds = ["string", "number"] if cls.bare_numbers else ["string"]
        return {"type": kinds, "examples": [cls.example], "title": cls.__name__}

    def __str__(self) -> str:
        return show(float(self), self.unit)  # type: ignore[arg-type]


class Bytes(_Quantity, int):
    """A size in bytes: "8GiB", "8Gi", "500MB" or a number of bytes."""

    unit = "B"
    noun = "size"
    example = '"8GiB"'
    scales: ClassVar = {"B": 1} | {
        f"{prefix}{suffix}": base**power
        for power, prefix in enumerate("KMGTP", start=1)
        for suffix, base in (("iB", 1024), ("i", 1024), ("B", 1000))
    }

    __str__ = _Quantity.__str__


class Duration(_Quantity, float):
    """A time in milliseconds: "500ms", "1.5s", "10min"; a bare number has no unit."""

    unit = "ms"
    noun = "duration"
    example = '"500ms"'
    bare_numbers = False
    scales: ClassVar = {"us": 1e-3, "µs": 1e-3, "ms": 1, "s": 1e3, "min": 6e4, "m": 6e4, "h": 3.6e6}

    @property
    def seconds(self) -> float:
        return self / 1000

    __str__ = _Quantity.__str__


class Rate(_Quantity, float):
    """Events per second: "8/s", "480/min" or a number per second."""

    unit = "1/s"
    noun = "rate"
    example = '"8/s"'
    scales: ClassVar = {"/s": 1, "/min": 1 / 60, "/m": 1 / 60, "/h": 1 / 3600}

    __str__ = _Quantity.__str__


class Fraction(_Quantity, float):
    """A share from 0 to 1: "85%" or 0.85."""

    unit = "fraction"
    noun = "fraction"
    example = '"85%"'
    scales: ClassVar = {"%": 0.01}
    highest = 1.0

    __str__ = _Quantity.__str__


def show(value: float, unit: str) -> str:
    """`value` (in the report's unit: B, ms, 1/s, fraction or a word) as a person reads it."""
    if not math.isfinite(value):
        return "unbounded"
    match unit:
        case "B":
            return _bytes(value)
        case "ms":
            return _duration(value)
        case "1/s":
            return f"{_digits(value)}/s"
        case "fraction":
            return f"{_digits(value * 100)} %"
        case "":
            return _digits(value)
    return f"{_digits(value)} {unit}"


def change(factor: float) -> str:
    """What a value was multiplied by, as a person reads it: `+5 %`, `−3 %`."""
    if math.isinf(factor):
        return "unbounded"
    return f"{'+' if factor >= 1 else '−'}{show(abs(factor - 1), 'fraction')}"


def _digits(value: float) -> str:
    """Four significant digits, thousands separated, no trailing zeros."""
    if value == int(value) or abs(value) >= 1000:  # noqa: PLR2004 - four digits
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return text if "e" not in text else f"{value:.2g}"


def _bytes(value: float) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{_digits(value / 1024**power)} {unit}"
    return f"{_digits(value)} B"


def _duration(value: float) -> str:
    seconds = 1000.0
    if abs(value) >= 10 * seconds:
        return f"{_digits(value / seconds)} s"
    return f"{_digits(value)} ms"


class Percentile(str):
    """A percentile by its usual name: "p50", "p99", "p99.9"."""

    __slots__ = ()
    _NAME = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)", re.ASCII)

    @classmethod
    def parse(cls, raw: object) -> Self:
        match = cls._NAME.fullmatch(raw) if isinstance(raw, str) else None
        if match and float(match[1]) > 0:
            return cls(raw)
        msg = f"{raw!r} is not a percentile: write for instance p50, p99 or p99.9"
        raise ValueError(msg)

    @property
    def fraction(self) -> float:
        return round(float(self[1:]) / 100, 9)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415 - importing the package is free

        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: GetJsonSchemaHandler) -> Any:
        return {"type": "string", "pattern": f"^{cls._NAME.pattern}$", "examples": ["p99"]}
