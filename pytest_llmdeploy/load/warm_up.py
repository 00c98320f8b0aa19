"""The first requests to a server, which are not measured."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from pytest_llmdeploy.load.crew import Crew
from pytest_llmdeploy.load.jobs import Job
from pytest_llmdeploy.load.samples import UNANSWERED, Outcome

# They are numbered from here: no measured prompt may be like them.
_WARMUP_NUMBER = 2**40


@dataclass(frozen=True, slots=True)
class WarmUp:
    """`problem` is what went wrong with the client, `heard` when the last token came (or the
    requests were sent), `is_stalled` that none of them was answered.
    """

    problem: str
    heard: float
    is_stalled: bool


async def warm_up(crew: Crew, job: Job, requests: int, seconds: float) -> WarmUp:
    """So many requests of the same kind, not measured: the first ones compile and allocate. They
    have `seconds` to end.
    """
    due = heard = time.perf_counter()
    outcomes: set[Outcome] = set()
    numbers = range(_WARMUP_NUMBER, _WARMUP_NUMBER + requests)
    await crew.begin([replace(job, schedule=[(number, due) for number in numbers])])

    async def listen() -> None:
        nonlocal heard
        async for report in crew.reports():
            heard = max(heard, report.last_token)
            outcomes.update(sample.outcome for _, sample in report.ended)

    problem = await crew.give_up_after(seconds, asyncio.create_task(listen()))
    return WarmUp(problem, heard, outcomes <= UNANSWERED)
