"""What the page is made of: a full checklist with seeded traffic, and a spec that is broken."""

from __future__ import annotations

import random
from dataclasses import replace

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.graph import deployment_graph
from pytest_llmdeploy.report import Checklist, Context, SpecText
from tests.plan.deployments import made
from tests.plan.test_search import STEADY
from tests.report.rows import checklist, full_checklist, row

HOSTILE = "</script><img src=x onerror=alert(1)>\x00\x1b[31m"


def loaded() -> list[Checklist]:
    """Results and evidence of the first are what a hostile server might say."""
    chance = random.Random(7)  # noqa: S311 - a figure, not a secret
    due = sorted(chance.uniform(0, 60) for _ in range(3000))
    times = [chance.lognormvariate(5, 0.4) for _ in due]
    requests = {
        "due": due,
        "ended": [at + time / 1e3 for at, time in zip(due, times, strict=True)],
        "outcome": ["ok"] * len(due),
        **dict.fromkeys(("ttft", "tpot", "e2el"), times),
        "stall": [time / 3 if number % 40 == 0 else None for number, time in enumerate(times)],
    }
    full = full_checklist()
    found = full.facts["traffic"]["steady"]
    steady = {**found, "ttft": {**found["ttft"], "n": len(due)}, "requests": requests}
    ttft = row(
        id="a.yaml::ttft[steady-p99]",
        family="latency",
        require="workloads.steady.require.ttft.p99",
        item="TTFT p99, steady",
        unit="ms",
        limit=1000.0,
        bound=420.0,
        result=HOSTILE,
        evidence={"source": "client", "log": HOSTILE, "n": 420},
        hint=HOSTILE,
    )
    spec = made(workloads=[STEADY])
    planned = plan(spec)
    facts = {**full.facts, "plan": planned.to_json(), "traffic": {"steady": steady}}
    text = SpecText(path="a.yaml", text=f"version: 1\n# {HOSTILE}\n", rows={1: [ttft.id]})
    context = Context(
        plan=planned,
        texts=[text],
        launch=f"vllm serve {HOSTILE}",
        graph=deployment_graph(spec, planned),
    )
    return [
        replace(full, rows=[*full.rows, ttft], facts=facts, context=context),
        checklist(Status.PASS, name="b", broken=f"b.yaml:1: {HOSTILE}"),
    ]
