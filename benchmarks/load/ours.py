"""Our client under load, in a process of its own: prints what it measured as JSON."""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import time

import msgspec
import uvloop

from pytest_llmdeploy.load.client import Client
from pytest_llmdeploy.load.prompts import Prompt
from pytest_llmdeploy.load.samples import Sample
from pytest_llmdeploy.probes.endpoint import Endpoint

# A timer of the event loop is exact to a millisecond; what is left is spent turning the loop.
_TURNING_SECONDS = 0.0007
_EARLY_SECONDS = 0.005


class Row(msgspec.Struct, frozen=True):
    """One request, in seconds of the monotonic clock; a stamp for each event."""

    outcome: str
    detail: str
    due: float
    sent: float
    stamps: list[float]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.ours", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--tokens", type=int, help="of each answer")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, help="of the arrivals")
    options = parser.parse_args()
    offsets = _arrivals(options.rate, options.seconds, options.seed)
    samples = uvloop.run(run(options.url, offsets, options.tokens))
    report = {user: _row(sample) for user, sample in samples.items()}
    sys.stdout.buffer.write(msgspec.json.encode(report))


def _arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process."""
    draw = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    offsets = [draw.expovariate(rate)]
    while (last := offsets[-1] + draw.expovariate(rate)) < seconds:
        offsets.append(last)
    return offsets


async def run(url: str, offsets: list[float], tokens: int) -> dict[int, Sample]:
    """Sends without regard to the answers: the samples by the number of the request."""
    prompts = [_prompt(user, tokens) for user in range(len(offsets))]
    samples: dict[int, Sample] = {}
    async with Client(Endpoint(url)) as client, asyncio.TaskGroup() as tasks:

        async def send(user: int, due: float) -> None:
            await _until(due)
            samples[user] = await client.send(prompts[user], due)

        gc.collect()
        gc.freeze()
        gc.disable()
        origin = time.perf_counter() + 0.1
        for user, offset in enumerate(offsets):
            # Early: a new task begins only in the next turn of the loop.
            await asyncio.sleep(origin + offset - time.perf_counter() - _EARLY_SECONDS)
            tasks.create_task(send(user, origin + offset))
    return samples


async def _until(due: float) -> None:
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(left - _TURNING_SECONDS if left > _TURNING_SECONDS else 0)


def _prompt(user: int, tokens: int) -> Prompt:
    request = {
        "model": "tiny-llama",
        "prompt": list(range(16)),
        "max_tokens": tokens,
        "stream": True,
        "user": str(user),
    }
    return Prompt(msgspec.json.encode(request), 16, tokens)


def _row(sample: Sample) -> Row:
    stamps = [stamp for stamp, _ in sample.stamps]
    return Row(sample.outcome, sample.detail, sample.due, sample.sent, stamps)


if __name__ == "__main__":
    main()
