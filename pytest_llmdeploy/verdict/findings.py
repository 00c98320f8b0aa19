"""What a decision says in a row: its evidence, its words, and what it takes to have one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pytest_llmdeploy.evidence import Judgement
from pytest_llmdeploy.verdict.decision import Decision

LONGER = "raise max_duration or the rate"
_TELLING = 1.5  # a design effect that is worth a word


def evidence(decision: Decision, source: str, saved: str = "") -> dict[str, Any]:
    """The decision in figures."""
    rule, n = decision.rule, decision.n
    return {
        "source": source,
        "n": n,
        "violations": decision.over,
        "p": rule.p,
        "alpha": rule.alpha,
        "beta": rule.beta,
        "burst": rule.burst,
        "indifference": rule.indifference,
        "design_effect": decision.design_effect,
        "effective_requests": n / decision.design_effect,
        "holds_for_bursts_of": holds_for_bursts_of(decision),
        "test": "SPRT" if rule.indifference else "mixture e-process",
        "saved": saved,
    }


def doubted(failed: Judgement, why: str) -> Judgement:
    """A FAIL that stands in spite of a client at fault: the evidence says that the client's part
    was left out, and why.
    """
    return replace(failed, evidence={**failed.evidence, "without_the_clients_part": why})


def holds_for_bursts_of(decision: Decision) -> float | None:
    """The longest bursts, in mean, against which a PASS holds."""
    if not decision.answer:
        return None
    return decision.rule.longest_burst(decision.n, decision.over, decision.design_effect)


def counted(decision: Decision, what: str = "over") -> str:
    return f"{_count(decision.over)} of {decision.n:,} {what}"


def particulars(decision: Decision, what: str, saved: str) -> str:
    """What stands in brackets behind the bound of a decided row."""
    bursts = holds_for_bursts_of(decision)
    # Rounded down: it holds for bursts of no more.
    about = None if bursts is None else f"bursts ≤ {math.floor(bursts * 10) / 10:g}"
    return f"({'; '.join(part for part in (counted(decision, what), about, saved) if part)})"


def what_it_takes(decision: Decision, remedy: str, what: str = "over the limit") -> str:
    """How many more requests would decide, without another violation; `remedy` says how they would
    be sent.
    """
    n, estimated = decision.n, decision.estimated_effect
    more = decision.rule.requests_to_pass(decision.over, estimated) - n
    counted = f"{told(n, decision.design_effect)} with {_count(decision.over)} {what}"
    return f"{counted} decide nothing; it takes {more:,} more without another one to pass: {remedy}"


def told(requests: int, effect: float) -> str:
    """So many requests, and as how many independent ones they count."""
    worth = "" if effect < _TELLING else f", worth {requests / effect:,.0f} independent ones,"
    return f"{requests:,} requests{worth}"


def _count(violations: float) -> str:
    """Whole, or as the sum of shares that it is."""
    return f"{violations:,.0f}" if violations == int(violations) else f"{violations:,.3g}"
