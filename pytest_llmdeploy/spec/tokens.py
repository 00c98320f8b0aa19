"""How many tokens go in and come out: numbers, distributions, datasets, and mixes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from pytest_llmdeploy.spec.dataset import Dataset, DatasetError, read_dataset
from pytest_llmdeploy.spec.errors import FaultError, written
from pytest_llmdeploy.spec.record import Record

# The largest power of e that a float holds.
_MOST_EXPONENT = 700.0


class LogNormal(Record):
    """Token counts whose logarithm is normal: `mean` and `sigma` are those of the logarithm."""

    mean: float = Field(allow_inf_nan=False)
    """Of the logarithm."""
    sigma: float = Field(gt=0, allow_inf_nan=False)
    """Of the logarithm."""
    min: int = Field(default=1, ge=1)
    """What is drawn below it is set to it."""
    max: int = Field(ge=1)
    """What is drawn above it is set to it."""

    def tokens(self, normal: float) -> int:
        """The count that belongs to a standard normal deviate."""
        value = math.exp(min(self.mean + self.sigma * normal, _MOST_EXPONENT))
        return max(self.min, min(self.max, round(value)))

    @property
    def clamped_mean(self) -> float:
        """The mean of the counts, those beyond `min` and `max` being these."""
        low = (math.log(self.min) - self.mean) / self.sigma
        high = (math.log(self.max) - self.mean) / self.sigma
        whole = math.exp(min(self.mean + self.sigma**2 / 2, _MOST_EXPONENT))
        within = whole * max(0.0, _normal(high - self.sigma) - _normal(low - self.sigma))
        mean = self.min * _normal(low) + within + self.max * _normal(-high)
        return min(max(mean, self.min), self.max)


def _normal(deviate: float) -> float:
    """The standard normal distribution; exact far below 0, too."""
    return math.erfc(-deviate / math.sqrt(2)) / 2


class Tokens(Record):
    """How many tokens a request has: a number, `uniform: [low, high]`, `lognormal: {…}`, or for
    the input a `dataset`, a JSONL file of prompts.
    """

    fixed: int | None = Field(default=None, ge=1)
    """So many; the number alone will do."""
    uniform: tuple[int, int] | None = Field(default=None, strict=False)
    """From the first to the second, each as likely."""
    lognormal: LogNormal | None = None
    """Drawn from a lognormal distribution."""
    dataset: str | None = Field(default=None, min_length=1)
    """A file of prompts (JSONL), relative to the spec; for `input_tokens`."""

    _data: Dataset | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, raw: Any) -> Any:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return {"fixed": raw}
        if isinstance(raw, Mapping) and len(raw) == 1:
            return raw
        forms = "{uniform: [low, high]}, {lognormal: {…}} or {dataset: file.jsonl}"
        msg = f"found {written(raw)}: write a number, {forms}"
        raise ValueError(msg)

    @model_validator(mode="after")
    def _reads_its_dataset(self, info: ValidationInfo) -> Self:
        if self.dataset is not None and self._data is None:
            folder = Path((info.context or {}).get("folder", "."))
            try:
                self._data = read_dataset(folder / self.dataset)
            except DatasetError as error:
                raise FaultError(("dataset",), str(error)) from None
        return self

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self._data and not 1 <= self.least <= self.most:
            msg = f"the range {self.least} to {self.most} is empty"
            raise ValueError(msg)
        return self

    @property
    def data(self) -> Dataset | None:
        """The prompts of the dataset, if it is one."""
        return self._data

    def with_data(self, data: Dataset) -> Self:
        """These tokens with other prompts."""
        copy = self.model_copy()
        copy._data = data  # noqa: SLF001 - a copy of this record
        return copy

    @property
    def least(self) -> int:
        if self._data:
            return self._data.shortest
        if self.uniform:
            return self.uniform[0]
        return self.lognormal.min if self.lognormal else self.fixed or 0

    @property
    def most(self) -> int:
        if self._data:
            return self._data.longest
        if self.uniform:
            return self.uniform[1]
        return self.lognormal.max if self.lognormal else self.fixed or 0

    @property
    def mean(self) -> float:
        """The mean number; of texts that nobody has counted yet, an estimate."""
        if self._data:
            return self._data.mean_input
        if self.uniform:
            return sum(self.uniform) / 2
        return self.lognormal.clamped_mean if self.lognormal else float(self.fixed or 0)


@dataclass(frozen=True, slots=True)
class Wording:
    """How a chat's text of an exact number of tokens is made: `opening`, and after it any of the
    `pieces`, each of which is one token wherever it stands. Without pieces the prompt has `around`
    tokens; the first `before` of them come ahead of the pieces.
    """

    opening: str
    pieces: Sequence[str]
    around: int
    before: int


class Part(Record):
    """One kind of requests of a mix, which `weight` in the sum of weights belong to."""

    weight: float = Field(default=1.0, gt=0, le=1e6)
    """How often it is drawn, beside the others' weights."""
    input_tokens: Tokens
    """The length of prompts, or the file that they are in."""
    output_tokens: Tokens | None = None
    """The length of answers."""

    @model_validator(mode="after")
    def _says_what_comes_back(self) -> Self:
        must_say_output(self.input_tokens, self.output_tokens)
        return self

    @property
    def mean_output(self) -> float:
        if self.output_tokens is not None:
            return self.output_tokens.mean
        return self.input_tokens.data.mean_output if self.input_tokens.data else 0.0

    @property
    def longest(self) -> int:
        """Input and output of its longest request."""
        if self.output_tokens is not None:
            return self.input_tokens.most + self.output_tokens.most
        return self.input_tokens.data.longest_with_output if self.input_tokens.data else 0


def must_say_output(given: Tokens, wanted: Tokens | None) -> None:
    """Refuses requests of which nobody says how many tokens are to come back."""
    data = given.data
    if wanted is None and not (data and data.says_outputs):
        why = "; not every line of the dataset has its own" if data else ""
        raise FaultError(("output_tokens",), f"is required{why}")
    if wanted is not None and wanted.dataset:
        raise FaultError(("output_tokens",), "a dataset is named by input_tokens")
