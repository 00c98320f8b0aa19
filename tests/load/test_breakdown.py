"""The client's figures beside the server's."""

from __future__ import annotations

from pytest_llmdeploy.load.breakdown import Breakdown
from pytest_llmdeploy.load.counters import PREFILL, QUEUE, TTFT, Counted, Counters, metrics_page
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.probes.endpoint import Endpoint
from tests.standin import Standin

ANSWERED = Sample(due=0, sent=0.002, ended=1, outcome=Outcome.OK, stamps=[(0.102, 1)])
FAILED = Sample(due=0, sent=5, ended=6, outcome=Outcome.STALLED)


def histogram(name: str, total: float, count: float) -> dict[str, float]:
    return {f"{name}_sum": total, f"{name}_count": count}


BEFORE = Counters({**histogram(TTFT, 9, 90), **histogram(QUEUE, 1, 90)}, 1.0)
AFTER = Counters({**histogram(TTFT, 9.18, 92), **histogram(QUEUE, 1.04, 92)}, 2.0)


def test_a_time_to_first_token_is_the_sum_of_its_parts() -> None:
    """Late sending, the network, and what the server says of itself; failures have none."""
    found = Breakdown.of([ANSWERED, ANSWERED, FAILED], Counted(BEFORE, AFTER))
    assert found is not None
    assert {key: round(v, 6) if v else v for key, v in found.to_json().items()} == {
        "client": 2.0,
        "server": 90.0,
        "network": 10.0,
        "queue": 20.0,
        "prefill": None,
        "others": 0,
    }
    assert str(found) == "queue 20 ms, network 10 ms, client 2 ms"


def test_requests_of_others_are_seen() -> None:
    """The server answered more than were sent."""
    found = Breakdown.of([ANSWERED], Counted(BEFORE, AFTER))
    assert found is not None
    assert found.others == 1


def test_a_server_that_says_nothing() -> None:
    """The client's own part is known all the same; without an answer there is nothing."""
    found = Breakdown.of([ANSWERED], None)
    assert found is not None
    assert (round(found.client, 6), found.server, str(found)) == (2.0, None, "client 2 ms")
    assert Breakdown.of([FAILED], None) is None


def test_counters_are_read_from_a_server(standin: Standin) -> None:
    """What it reports is there, what it does not is absent, and no server is None."""
    read = Counters.of([metrics_page(Endpoint(standin.url))])
    assert read is not None
    assert f"{TTFT}_count" in read.totals
    assert Counted(read, read).mean(PREFILL) is None
    assert Counted(read, read).restart == ""
    assert Counters.of([metrics_page(Endpoint("http://127.0.0.1:9"))]) is None
