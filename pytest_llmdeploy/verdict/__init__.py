"""From evidence to a judgement: exact comparisons, and statistics where there are samples."""

from pytest_llmdeploy.verdict.balance import BalanceDecision, BalanceRule, Shares, Spread
from pytest_llmdeploy.verdict.decision import Decision
from pytest_llmdeploy.verdict.observation import Observation
from pytest_llmdeploy.verdict.quantile import Quantile
from pytest_llmdeploy.verdict.readings import Readings
from pytest_llmdeploy.verdict.regression import Corridor, Tolerated, regression
from pytest_llmdeploy.verdict.rule import Rule, beta_for
from pytest_llmdeploy.verdict.sequential import SequentialTest
from pytest_llmdeploy.verdict.share import Share

__all__ = [
    "BalanceDecision",
    "BalanceRule",
    "Corridor",
    "Decision",
    "Observation",
    "Quantile",
    "Readings",
    "Rule",
    "SequentialTest",
    "Share",
    "Shares",
    "Spread",
    "Tolerated",
    "beta_for",
    "regression",
]
