"""What the stand-in's own tests ask of it, and how they read the answers."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from . import Reply, Standin
from .settings import COMPLETIONS

EXACT: dict[str, Any] = {
    "model": "tiny-llama",
    "prompt": [10, 11, 12],
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 20,
    "ignore_eos": True,
    "return_token_ids": True,
}
STREAM = EXACT | {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def families(standin: Standin) -> dict[str, Metric]:
    """The parsed metrics by family name."""
    text = standin.call("GET", "/metrics").body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def sample(standin: Standin, name: str, **labels: str) -> float:
    """The sum of the samples of that name that carry these labels."""
    return sum(
        found.value
        for family in families(standin).values()
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until the condition holds; fail at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextmanager
def load(standin: Standin, count: int, **changes: object) -> Iterator[list[Reply]]:
    """Keep so many requests under way; the replies are there after the block."""
    replies: list[Reply] = []
    with ThreadPoolExecutor(count) as pool:
        sent = [
            pool.submit(standin.call, "POST", COMPLETIONS, STREAM | changes) for _ in range(count)
        ]
        yield replies
        replies += [reply.result() for reply in sent]


@contextmanager
def opened(
    standin: Standin, body: dict[str, Any], path: str = COMPLETIONS, timeout: float = 10.0
) -> Iterator[HTTPConnection]:
    """A connection on which the request has been sent and nothing been read."""
    connection = HTTPConnection(standin.url.removeprefix("http://"), timeout=timeout)
    with closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        yield connection


def arrivals(standin: Standin) -> list[float]:
    """Seconds from the sending of a request to each of its token chunks."""
    start = time.monotonic()
    with opened(standin, STREAM) as connection, connection.getresponse() as response:
        return [time.monotonic() - start for line in response if b'"token_ids"' in line]
