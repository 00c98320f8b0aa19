"""Reading a config.json: each key with its default, and an error that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# More than any model has; what is beyond is a slip of the pen, and could take for ever.
MOST_LAYERS = 4096
MOST = 1 << 40


class ShapeUnknownError(Exception):
    """The model's shape can't be known from here; the text says what to do."""


class Config:
    """A config.json, or a section of one; a key that is absent has the default of the
    transformers class of that model_type.
    """

    __slots__ = ("_defaults", "_path", "_raw")

    def __init__(
        self, raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = ""
    ) -> None:
        self._raw = raw
        self._defaults = defaults or {}
        self._path = path

    def get(self, key: str) -> Any:
        """The value as it is written, else the default; None where there is neither."""
        return self._raw[key] if key in self._raw else self._defaults.get(key)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; `default` where the key is null or unknown.

        Raises:
            ShapeUnknownError: when there is none, or not from `least` to any sensible size.
        """
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise ShapeUnknownError(f"config.json has no {self._path + key!r}")
        if type(value) is not int or not least <= value <= MOST:
            raise self.senseless(key)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def section(self, key: str, defaults: Mapping[str, Any] | None = None) -> Config:
        """The mapping under `key`; an empty one where it is absent."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.senseless(key)
        return Config(value, defaults, f"{self._path}{key}.")

    def keys(self) -> Sequence[str]:
        """The keys that are written."""
        return list(map(str, self._raw))

    def items(self, key: str) -> Sequence[Any]:
        """The list under `key`; an empty one where it is absent."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.senseless(key)
        return value

    def factor(self, key: str, default: float = 1.0) -> float:
        """A positive number."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
            raise self.senseless(key)
        return float(value)

    def layers(self, key: str = "num_hidden_layers") -> int:
        count = self.count(key)
        if count > MOST_LAYERS:
            raise self.senseless(key)
        return count

    def divided(self, key: str, by: str) -> int:
        """One whole number by another.

        Raises:
            ShapeUnknownError: when it does not divide.
        """
        value, parts = self.count(key), self.count(by)
        if value % parts:
            raise ShapeUnknownError(f"config.json: {key} {value} is not divisible by {by} {parts}")
        return value // parts

    def senseless(self, key: str) -> ShapeUnknownError:
        """The error for a value that can't be meant."""
        value = repr(self.get(key))
        shown = value if len(value) < 60 else value[:57] + "..."  # noqa: PLR2004 - a line of text
        return ShapeUnknownError(f"config.json: {self._path}{key} is {shown}")
