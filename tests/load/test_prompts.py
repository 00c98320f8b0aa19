"""Prompts are exactly as long as asked for, and no cache has seen them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise, takewhile
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.load.prompts import Prompt, Prompts
from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.tokens import LogNormal, Wording
from tests.load.workloads import MODEL, VOCAB, workload

SPREAD = {"uniform": [1, 300]}
LONG_TAIL = {"lognormal": {"mean": 4, "sigma": 2, "min": 5, "max": 200}}
MIX = [
    {"weight": 3, "input_tokens": 10, "output_tokens": 1},
    {"input_tokens": {"uniform": [20, 40]}, "output_tokens": 2},
]
CACHE_BLOCK = 16


def source(nonce: int = 1, vocab: int = VOCAB, **overrides: Any) -> Prompts:
    return Prompts(workload(**overrides), MODEL, vocab, nonce)


def take(count: int = 50, nonce: int = 1, **overrides: Any) -> list[Prompt]:
    prompts = source(nonce, **overrides)
    return [prompts.at(index) for index in range(count)]


def ids(prompt: Prompt) -> list[int]:
    found: list[int] = json.loads(prompt.body)["prompt"]
    return found


def shared(one: list[int], other: list[int]) -> int:
    """With how many tokens both begin."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2000), st.integers(1, 500), st.integers(2, 200_000), st.integers(0, 2**41))
def test_lengths_are_exact_and_ids_are_in_the_vocabulary(
    tokens: int, output: int, vocab: int, index: int
) -> None:
    """What is declared is what is sent and what must come back, whatever the vocabulary."""
    prompt = source(vocab=vocab, input_tokens=tokens, output_tokens=output).at(index)
    body = json.loads(prompt.body)
    assert len(body["prompt"]) == prompt.input_tokens == tokens
    assert body["max_tokens"] == body["min_tokens"] == prompt.output_tokens == output
    assert all(0 <= token < vocab for token in body["prompt"])
    assert body["ignore_eos"] is body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (body["model"], body["temperature"]) == (MODEL, 0)
    # Token ids would bring the whole prompt back with the first token.
    assert not {"cache_salt", "return_token_ids"} & body.keys()


def test_drawn_lengths_stay_in_their_range_and_use_it() -> None:
    """Both ends of a log-normal that is cut are met, and nothing beyond."""
    drawn = [prompt.output_tokens for prompt in take(300, output_tokens=LONG_TAIL)]
    assert (min(drawn), max(drawn)) == (5, 200)
    drawn = [prompt.input_tokens for prompt in take(300, input_tokens=SPREAD)]
    assert 1 <= min(drawn) < 30
    assert 270 < max(drawn) <= 300


@pytest.mark.parametrize("tokens", [SPREAD, LONG_TAIL, 7])
def test_the_mean_that_is_planned_with_is_the_mean_that_is_sent(tokens: Any) -> None:
    """Within four standard errors of 4,000 requests."""
    found = take(4000, output_tokens=tokens)
    drawn = [prompt.output_tokens for prompt in found]
    spread = (fmean(n * n for n in drawn) - fmean(drawn) ** 2) ** 0.5
    planned = workload(output_tokens=tokens).mean_output
    assert fmean(drawn) == pytest.approx(planned, abs=4 * spread / 4000**0.5 + 1e-9)


@settings(deadline=None)
@given(
    mean=st.floats(-1e4, 1e4),
    sigma=st.floats(1e-3, 1e3),
    low=st.integers(1, 100),
    more=st.integers(0, 10**6),
    normal=st.floats(-9, 9),
)
def test_any_log_normal_has_counts_and_a_mean_within_its_bounds(
    mean: float, sigma: float, low: int, more: int, normal: float
) -> None:
    """However absurd the parameters are."""
    shape = LogNormal(mean=mean, sigma=sigma, min=low, max=low + more)
    assert low <= shape.clamped_mean <= low + more
    assert low <= shape.tokens(normal) <= low + more


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_it_does_not_matter_who_asks(workers: int) -> None:
    """Workers that each make every n-th prompt make the prompts that one would make."""
    given: dict[str, Any] = {"input_tokens": SPREAD, "output_tokens": LONG_TAIL, "shared_prefix": 1}
    alone = [prompt.body for prompt in take(40, **given)]
    crew = [source(**given) for _ in range(workers)]
    assert [crew[index % workers].at(index).body for index in range(40)] == alone
    assert [crew[0].at(index).body for index in reversed(range(40))] == alone[::-1]


def test_another_process_makes_the_same_prompts() -> None:
    """Nothing depends on the hash seed of an interpreter, nor on what was drawn before."""
    given: dict[str, Any] = {"input_tokens": SPREAD, "seed": 3}
    script = (
        "import pickle, sys; from pytest_llmdeploy.load.prompts import Prompts;"
        "work = pickle.load(sys.stdin.buffer);"
        f"sys.stdout.buffer.write(Prompts(work, {MODEL!r}, {VOCAB}, 9).at(77).body)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(workload(**given)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "5"},
        check=True,
    )
    assert done.stdout == source(9, **given).at(77).body


def test_a_second_run_sends_the_same_prompts_but_for_their_beginning() -> None:
    """Two runs are comparable: only the first 8 tokens are others."""
    for one, other in zip(
        take(nonce=1, input_tokens=64), take(nonce=2, input_tokens=64), strict=True
    ):
        assert ids(one)[8:] == ids(other)[8:]
        assert ids(one)[:8] != ids(other)[:8]
    lengths = [
        [(p.input_tokens, p.output_tokens) for p in take(nonce=nonce, input_tokens=SPREAD)]
        for nonce in (1, 2)
    ]
    assert lengths[0] == lengths[1]


def test_another_seed_sends_other_prompts() -> None:
    """The seed of the workload decides the tokens beyond the first ones."""
    assert ids(take(1, seed=1)[0])[8:] != ids(take(1, seed=2)[0])[8:]


@pytest.mark.parametrize("vocab", [VOCAB, 128_256])
def test_no_two_prompts_begin_alike(vocab: int) -> None:
    """Neither within a run nor between runs: a prefix cache has nothing to give."""
    found = [*take(500, 1, vocab=vocab), *take(500, 2, vocab=vocab)]
    heads = {tuple(ids(prompt)[:8]) for prompt in found}
    assert len(heads) == len(found)


@pytest.mark.parametrize("share", [1, 7, 48, 100])
def test_a_shared_prefix_is_shared_by_all_prompts_of_a_run_and_by_no_other_run(share: int) -> None:
    """The declared tokens are the same for all, the next ones are not."""
    given = {"input_tokens": {"uniform": [100, 120]}, "shared_prefix": share}
    first, *others = (ids(prompt) for prompt in take(60, 1, **given))
    common = [shared(first, other) for other in others]
    assert min(common) >= share
    assert max(common) < share + 8
    assert shared(first, ids(take(1, 2, **given)[0])) < 8
    rate = workload(**given).expected_hit_rate
    prompts = take(2000, 1, **given)
    sent = sum(prompt.input_tokens for prompt in prompts)
    assert rate == pytest.approx(share * len(prompts) / sent, rel=0.01)


def test_a_prompt_that_is_all_prefix() -> None:
    """Every prompt of that length is the same one."""
    found = take(5, input_tokens=32, shared_prefix=32)
    assert len({prompt.body for prompt in found}) == 1
    assert workload(input_tokens=32, shared_prefix=32).expected_hit_rate == 1


def test_a_mix_has_the_declared_shares() -> None:
    """Three of four requests are of the first kind, in no order, and lengths go together."""
    found = [(p.input_tokens, p.output_tokens) for p in take(2000, input_tokens=None,
             output_tokens=None, mix=MIX)]  # fmt: skip
    kinds = Counter(output for _, output in found)
    assert kinds[1] / 2000 == pytest.approx(0.75, abs=0.04)
    assert all(tokens == 10 if output == 1 else 20 <= tokens <= 40 for tokens, output in found)
    runs = sum(a[1] != b[1] for a, b in pairwise(found))
    assert runs / 2000 == pytest.approx(2 * 0.75 * 0.25, abs=0.05)


def test_what_the_plan_sees_of_a_mix() -> None:
    """Means are weighted, the longest is the longest of its kinds."""
    found = workload(input_tokens=None, output_tokens=None, mix=MIX, shared_prefix=5)
    assert found.mean_input == pytest.approx((3 * 10 + 30) / 4)
    assert found.mean_output == pytest.approx((3 * 1 + 2) / 4)
    assert found.longest == 42
    assert found.expected_hit_rate == pytest.approx(5 / 15)


def dataset(folder: Path, *lines: dict[str, Any], **overrides: Any) -> Workload:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"input_tokens": {"dataset": str(path)}, "output_tokens": None, **overrides}
    return workload(**given)


LINES: list[dict[str, Any]] = [
    {"prompt": [1, 2, 3, *range(length)], "output_tokens": length} for length in range(1, 51)
]


def test_a_dataset_is_sent_as_it_is_and_wholly(tmp_path: Path) -> None:
    """Each prompt once in each round, with its own output, in an order that is not the file's."""
    prompts = Prompts(dataset(tmp_path, *LINES), MODEL, VOCAB, 1)
    found = [prompts.at(index) for index in range(100)]
    expected = sorted((line["prompt"], line["output_tokens"]) for line in LINES)
    for rounds in (found[:50], found[50:]):
        assert sorted((ids(prompt), prompt.output_tokens) for prompt in rounds) == expected
    assert all(len(ids(prompt)) == prompt.input_tokens for prompt in found)
    lengths = [prompt.input_tokens for prompt in found]
    assert lengths[:50] == lengths[50:] != sorted(lengths[:50])


def test_no_request_finds_the_dataset_in_a_cache(tmp_path: Path) -> None:
    """A salt makes each request its own, in each round and each run."""
    work = dataset(tmp_path, *LINES)
    salts = [
        json.loads(Prompts(work, MODEL, VOCAB, nonce).at(index).body)["cache_salt"]
        for nonce in (1, 2)
        for index in range(100)
    ]
    assert len(set(salts)) == 200


def test_a_dataset_may_share_what_it_declares(tmp_path: Path) -> None:
    """Within a round, prompts share their beginning; the next round finds nothing of the last."""
    work = dataset(tmp_path, *LINES, shared_prefix=4)
    bodies = [json.loads(Prompts(work, MODEL, VOCAB, 1).at(i).body) for i in range(100)]
    salts = [body["cache_salt"] for body in bodies]
    assert len(set(salts[:50])) == len(set(salts[50:])) == 1
    assert salts[0] != salts[50]
    mean = fmean(len(line["prompt"]) for line in LINES)
    assert work.expected_hit_rate == pytest.approx(4 / mean)


def test_the_workload_s_output_overrides_the_dataset_s(tmp_path: Path) -> None:
    """Given both, the workload's counts."""
    prompts = Prompts(dataset(tmp_path, *LINES, output_tokens=3), MODEL, VOCAB, 1)
    assert {prompts.at(index).output_tokens for index in range(50)} == {3}


def test_what_was_not_prepared_is_not_sent(tmp_path: Path) -> None:
    """A text of unknown length and a chat without words are the caller's mistake."""
    text = dataset(tmp_path, {"prompt": "hello", "output_tokens": 3})
    for unprepared in (text, workload(endpoint="chat")):
        with pytest.raises(ValueError, match="prepared"):
            Prompts(unprepared, MODEL, VOCAB, 1)


def test_a_chat_has_the_options_of_its_endpoint() -> None:
    """The body is a chat's: messages, and the number of tokens under the newer name."""
    words = Wording("Say", [f" w{n}" for n in range(30)], around=5, before=3)
    prompts = Prompts(workload(endpoint="chat").with_wording(words), MODEL, VOCAB, 1)
    body = json.loads(prompts.at(0).body)
    (message,) = body["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 1 + 16 - 5)
    assert body["max_completion_tokens"] == body["min_tokens"] == 4
    assert body["ignore_eos"] is body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "prompt" not in body
    assert body["cache_salt"] != json.loads(prompts.at(1).body)["cache_salt"]


def test_making_a_prompt_costs_the_client_next_to_nothing() -> None:
    """1,024 tokens take less than a millisecond."""
    prompts, seconds = source(vocab=128_256, input_tokens=1024), []
    for index in range(300):
        started = time.perf_counter()
        prompts.at(index)
        seconds.append(time.perf_counter() - started)
    assert median(seconds) < 0.001
