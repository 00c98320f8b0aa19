"""What the deployment as a whole must be: the key `require` of a spec. Those of a workload are with
it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from pytest_llmdeploy.spec.errors import FaultError
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.units import Bytes, Fraction

_LONGEST_RANGE = 200


class MemoryRequire(Record):
    """Limits on every device's memory."""

    max_utilization: Fraction | None = None
    """Used / total of every device is at most this."""
    min_headroom: Bytes | None = None
    """Total − reserved − used of every device is at least this."""


class KvCacheRequire(Record):
    """How many sequences of how many tokens the KV cache holds at once."""

    concurrent_sequences: int = Field(ge=1)
    """Sequences that are held at once."""
    tokens_per_sequence: int | None = Field(default=None, ge=1)
    """Tokens of each; by default `max_model_len`."""


class BalanceRequire(Record):
    """How far a device may be from the mean of its stage, a stage from the mean of all; and how far
    beyond the mean the busiest rank may be (experts), or engine (requests, tokens).
    """

    memory: Fraction | None = None
    """No device's used memory is further from the mean of its stage."""
    layers: Fraction | None = None
    """No stage's number of layers is further from the mean."""
    experts: Fraction | None = None
    """No rank has more routed experts than the mean by more."""
    requests: Fraction | None = None
    """No engine gets more requests than the mean by more."""
    tokens: Fraction | None = None
    """No engine generates more tokens than the mean by more."""

    @model_validator(mode="after")
    def _can_be_decided(self) -> Self:
        for key in ("requests", "tokens"):
            if getattr(self, key) == 0:
                msg = "no number of requests shows that engines are exactly even: write 10 %, say"
                raise FaultError((key,), msg)
        return self


class StrategyRequire(Record):
    """How far the declared strategy may be from the best feasible one."""

    within: Fraction
    """No other strategy on this hardware is predicted to do more by more than this."""


class RegressionRequire(Record):
    """How much worse it may be than in an earlier run."""

    memory: Fraction | None = None
    """No device uses more by more than this."""


class Require(Record):
    """What the deployment must be; every key becomes a row. A mapping under another key holds
    the requirements of somebody's own checks.
    """

    model_config = ConfigDict(extra="allow")

    devices: int | None = Field(default=None, ge=1)
    """The strategy uses exactly so many devices."""
    memory: MemoryRequire = MemoryRequire()
    """Limits on every device's memory."""
    kv_cache: KvCacheRequire | None = None
    """What the KV cache holds."""
    balance: BalanceRequire = BalanceRequire()
    """How even the load is."""
    interconnect: Literal["nvlink"] | None = None
    """What connects every pair of a tensor-parallel group."""
    driver: str | None = None
    """The range of the GPU driver's version, as `">=550"`."""
    cuda: str | None = None
    """The range of the CUDA version that the driver supports."""
    persistence: Literal[True] | None = None
    """Persistence mode is on, on every GPU."""
    plan_agrees: Fraction | None = None
    """Every rank's memory is within this fraction of what was planned."""
    dry_run: Literal[True] | None = None
    """The vLLM that is installed here accepts the configuration."""
    strategy: StrategyRequire | None = None
    """How good the parallel strategy is."""
    regression: RegressionRequire = RegressionRequire()
    """How much worse it may be than in the run of `--deploy-baseline`."""

    @model_validator(mode="after")
    def _has_version_ranges(self) -> Self:
        for key, text, example in (
            ("driver", self.driver, ">=550"),
            ("cuda", self.cuda, ">=12.4"),
        ):
            if text is not None:
                must_be_range(key, text, example)
        return self


def must_be_range(key: str, text: str, example: str) -> None:
    """Refuses a text that is no range of versions."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415

    try:
        SpecifierSet(text if len(text) <= _LONGEST_RANGE else "?")
    except InvalidSpecifier:
        msg = f'found {text!r}: write a version range, for instance "{example}"'
        raise FaultError((key,), msg) from None
