"""`expect`: the comparison of evidence with what is required, which makes the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from _pytest.outcomes import Failed

from pytest_llmdeploy.checks.requirements import Requirement
from pytest_llmdeploy.evidence import Evidence, Judgement, Status
from pytest_llmdeploy.verdict import Quantile, Readings


class NotPassed(Failed):
    """A requirement is not met, or not decided; its text says what was required and found."""

    # As pytest's own outcomes do, so that its summary shows no path before the text.
    __module__ = "builtins"

    def __init__(self, text: str) -> None:
        super().__init__(text, pytrace=False)


class DecidedTwiceError(Exception):
    """A check compared twice: one item makes one row."""


@dataclass(frozen=True)
class Expectation:
    """Evidence that waits for the comparison. Every comparison decides the check."""

    _expect: Expect
    _evidence: Readings | Quantile
    _about: str

    def at_most(self, limit: float) -> None:
        """Every value, or the percentile, is within `limit`."""
        self._expect.judge(self._evidence.at_most(limit, self._about))

    def at_least(self, limit: float) -> None:
        """Every value is `limit` or more."""
        self._expect.judge(self._readings.at_least(limit, self._about))

    def equals(self, expected: float) -> None:
        """Every value is exactly `expected`."""
        self._expect.judge(self._readings.equals(expected, self._about))

    def within(self, tolerance: float) -> None:
        """Every value is within the fraction `tolerance` of the mean, both ways."""
        self._expect.judge(self._readings.within(tolerance, self._about))

    def hold(self) -> None:
        """Every value is 1: what each entry says is true."""
        self._expect.judge(self._readings.hold(self._about))

    @property
    def _readings(self) -> Readings:
        if isinstance(self._evidence, Quantile):
            msg = "a percentile of latencies can only be compared with at_most"
            raise TypeError(msg)
        return self._evidence


@dataclass
class Expect:
    """Compares, and records the row. One comparison for each check.

    `expect(value).at_most(limit)` takes a number, a piece of evidence, a mapping of either (the
    worst entry is named, all are kept) or a percentile of latencies.
    """

    requirement: Requirement
    judgement: Judgement | None = field(default=None, init=False)

    def __call__(
        self,
        value: float | Evidence | Mapping[str, float | Evidence] | Readings | Quantile,
        about: str = "",
    ) -> Expectation:
        """`about` is appended to the requirement: "≥ 8 GiB" + "on each device"."""
        evidence = value if isinstance(value, Quantile) else Readings.of(value)
        return Expectation(self, evidence, about)

    def judge(self, judgement: Judgement) -> None:
        """Records a judgement that was made elsewhere.

        Raises:
            NotPassed: unless it is a PASS; pytest reports it as a failed test.
        """
        if self.judgement is not None:
            name = self.requirement.check.name
            msg = f"the check {name!r} decides twice: make a check of each"
            raise DecidedTwiceError(msg)
        # What could not be read is not mended by what the check would change.
        decidable = judgement.status not in {Status.PASS, Status.ERROR}
        hint = judgement.hint or (self.requirement.check.hint if decidable else "")
        self.judgement = replace(judgement, hint="" if judgement.status is Status.PASS else hint)
        if judgement.status is not Status.PASS:
            raise NotPassed(explanation(self.requirement.item, self.judgement))


def explanation(item: str, judgement: Judgement) -> str:
    """The text of a test that did not pass."""
    lines = [f"{item}: {judgement.result}", f"  status:   {judgement.status}"]
    if judgement.requirement:
        lines.append(f"  required: {judgement.requirement}")
    if source := judgement.evidence.get("source"):
        lines.append(f"  read:     {source}")
    if judgement.hint:
        lines.append(f"  hint:     {judgement.hint}")
    return "\n".join(lines)
