"""From evidence to a judgement: exact comparisons, and statistics where there are samples."""

from pytest_llmdeploy.verdict.quantile import Quantile
from pytest_llmdeploy.verdict.readings import Readings
from pytest_llmdeploy.verdict.sequential import Decision, SequentialTest

__all__ = ["Decision", "Quantile", "Readings", "SequentialTest"]
