"""The balance of engines, through whole runs against the stand-in, and what its counters say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.load import Outcome, Sample, Traffic, runner
from pytest_llmdeploy.load.claims import Budget
from pytest_llmdeploy.load.counters import Counters
from pytest_llmdeploy.load.engines import REQUESTS, TOKENS, Dealing
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Spec
from pytest_llmdeploy.spec.require import BalanceRequire
from pytest_llmdeploy.units import Fraction
from tests.load.workloads import MODEL, VOCAB
from tests.standin import Standin

STEADY: Mapping[str, Any] = {
    "name": "steady",
    "input_tokens": 16,
    "output_tokens": {"uniform": [2, 6]},
    "rate": "200/s",
    "warmup": "0s",
    "max_duration": "20s",
}


@pytest.fixture(autouse=True)
def often_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters are read often, so that runs can be short."""
    monkeypatch.setattr(runner, "_WATCH_SECONDS", 0.03)


def run(*replicas: str, data: int = 2, **changes: Any) -> Traffic:
    """The traffic of a spec that requires both balances, through the first of the replicas."""
    balance = {"requests": "30%", "tokens": "30%"}
    spec = Spec.model_validate(
        {
            "version": 1,
            "model": {"id": "m"},
            "hardware": {"device": "cpu", "devices_per_node": 2},
            "parallel": {"data": data},
            "attach": {"url": replicas[0], "engines": list(replicas)},
            "workloads": [{**STEADY, **changes}],
            "require": {"balance": balance},
        }
    )
    endpoints = [Endpoint(url) for url in replicas]
    target = Target(endpoint=endpoints[0], replicas=endpoints, model=MODEL, vocab=VOCAB)
    return run_workloads(spec, target)


def judged(traffic: Traffic) -> Iterator[Judgement]:
    for of in ("requests", "tokens"):
        yield traffic.shares(of).within(Fraction(0.3))


def test_even_engines_pass_and_the_run_ends(standin: Standin) -> None:
    """As soon as both balances are decided, and the counts are those of the client."""
    standin.configure(engines=2)
    traffic = run(standin.url)
    requests, tokens = judged(traffic)
    assert {requests.status, tokens.status} == {Status.PASS}
    assert traffic["steady"].seconds < 5
    assert sum(requests.evidence["counts"].values()) == len(traffic["steady"].samples)
    sent = sum(n for sample in traffic["steady"].samples for _, n in sample.stamps)
    assert sum(tokens.evidence["counts"].values()) == sent


def test_a_starved_engine_fails(standin: Standin) -> None:
    """Everything goes to the first one, which is named."""
    standin.configure(engines=2, routing="first")
    traffic = run(standin.url)
    for found in judged(traffic):
        assert found.status is Status.FAIL
        assert found.evidence["busiest"] == "engine 0"
        assert found.evidence["counts"]["engine 1"] == 0
    assert traffic["steady"].seconds < 5


def test_too_few_requests_decide_nothing(standin: Standin) -> None:
    """The workload is over before."""
    standin.configure(engines=2)
    for found in judged(run(standin.url, max_duration="200ms")):
        assert found.status is Status.INCONCLUSIVE
        assert "shared evenly" in found.hint


def test_replicas_are_read_one_by_one(standin: Standin) -> None:
    """What one replica alone is sent is seen in the counters of all of them."""
    with Standin() as other:
        traffic = run(standin.url, other.url, data=1)
    for found in judged(traffic):
        assert found.status is Status.FAIL
        assert found.evidence["busiest"] == "replica 0 engine 0"
        assert found.evidence["counts"]["replica 1 engine 0"] == 0


def test_a_missing_engine_is_not_waited_for(standin: Standin) -> None:
    """One engine where two are declared: the run ends after its census, and the row says which."""
    traffic = run(standin.url)
    assert traffic["steady"].seconds < 5
    for found in judged(traffic):
        assert (found.status, found.result) == (
            Status.FAIL,
            "1 of 2 engines are there, not engine 1",
        )


def test_nobody_to_ask() -> None:
    """A replica that does not answer at /metrics: nothing is said of the balance."""
    for found in judged(run("http://127.0.0.1:9")):
        assert found.status is Status.ERROR
        assert "/metrics could not be read" in found.result


def page(*counts: float, reasons: Sequence[str] = ("stop", "length")) -> bytes:
    """What /metrics says of so many requests of each engine, of ten tokens each."""
    lines = [
        f'{REQUESTS}{{engine="{engine}",finished_reason="{reason}",model_name="m"}} {count / 2}'
        for engine, count in enumerate(counts)
        for reason in reasons
    ]
    lines += [f'{TOKENS}{{engine="{e}"}} {10 * count}' for e, count in enumerate(counts)]
    return "\n".join(lines).encode()


def dealing(copies: int = 2, replicas: int = 1) -> Dealing:
    """Something that follows engines, once a request of ten tokens was answered."""
    required = BalanceRequire(requests=Fraction(0.3))
    following = Dealing(required, copies, replicas, Budget(0.05, 0.05))
    following.answered(answered(10))
    return following


def answered(tokens: int) -> Sample:
    stamps = [(0.1, 1), (0.2, tokens - 1)]
    return Sample(due=0, sent=0, ended=1, outcome=Outcome.OK, stamps=stamps)


def read(*pages: bytes | None) -> Counters:
    found = Counters.of(pages)
    assert found is not None
    return found


def test_counters_are_told_apart_by_engine() -> None:
    """Over the reasons of their ends; the totals are over all engines."""
    found = read(page(4, 6))
    assert found.engines[REQUESTS] == {"engine 0": 4, "engine 1": 6}
    assert found.totals[REQUESTS] == 10
    both = read(page(4), page(6))
    assert both.engines[TOKENS] == {"replica 0 engine 0": 40, "replica 1 engine 0": 60}
    assert both.totals[TOKENS] == 100
    assert Counters.of([page(4), None]) is None


def test_only_what_is_dealt_in_a_measurement_counts() -> None:
    """Between two workloads, their warm-up is left out."""
    following = dealing()
    for begun in (100, 900):
        following.begin(read(page(begun, 0)))
        following.take(read(page(begun + 5, 5)))
    assert following.engines.shares("requests").counts == {"engine 0": 10, "engine 1": 10}


@pytest.mark.parametrize("after", [page(99, 100), page(100), page(100, 100, 1), b""])
def test_counters_that_fall_or_vanish_are_lost(after: bytes) -> None:
    """An engine was started anew: nothing is concluded, and nothing waited for."""
    following = dealing()
    following.begin(read(page(100, 100)))
    following.take(read(after))
    assert dict(following.answers()) == {"requests balance": False}
    assert following.engines.shares("requests").problem.startswith("lost: ")


def test_a_counter_that_is_not_there_is_unsupported() -> None:
    """It is said which, and not waited for."""
    following = dealing()
    for count in (0, 5):
        tokens = "\n".join(f'{TOKENS}{{engine="{e}"}} {count}' for e in "01")
        (following.take if count else following.begin)(read(tokens.encode()))
    assert dict(following.answers()) == {"requests balance": False}
    found = following.engines.shares("requests").within(Fraction(0.3))
    assert (found.status, found.result) == (
        Status.ERROR,
        f"unsupported: /metrics has no {REQUESTS}",
    )


def test_copies_with_servers_of_their_own_are_not_missing() -> None:
    """Each replica is one of the data-parallel copies, and says which."""
    following, (first, second) = dealing(replicas=2), page(1, 2).decode().splitlines()[::2][:2]
    following.begin(read(first.encode(), second.encode()))
    assert not following.missing
    following.begin(read(first.encode(), first.encode()))
    assert following.missing == ["replica 0 engine 1", "replica 1 engine 1"]


def test_tokens_are_worth_fewer_requests_where_lengths_differ() -> None:
    """One request for each E[length²] / E[length]: 10 tokens when all have 10, else more."""
    following = dealing()
    following.begin(read(page(0, 0)))
    following.take(read(page(10, 10)))
    for length in (5, 15):
        following.answered(answered(length))
    following.take(read(page(20, 20)))
    assert [part.worth[TOKENS] for part in following.dealt] == [10, pytest.approx(350 / 30)]
    assert following.dealt[0].requests(TOKENS) == {"engine 0": 10, "engine 1": 10}


def test_what_comes_before_the_first_answer_counts_with_it() -> None:
    """Tokens of answers that are under way can't be weighed before their length is known."""
    following = Dealing(BalanceRequire(), 2, 1, Budget(0.05, 0.05))
    following.begin(read(page(0, 0)))
    following.take(read(page(3, 2)))
    assert not following.dealt
    following.answered(answered(10))
    following.take(read(page(5, 5)))
    assert following.engines.shares("tokens").counts == {"engine 0": 50, "engine 1": 50}
