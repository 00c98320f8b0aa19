"""Texts are counted by the server's tokenizer, and a chat's prompts are of an exact length."""

from __future__ import annotations

import json
import os
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.load import preparation
from pytest_llmdeploy.load.preparation import PreparationError, prepared
from pytest_llmdeploy.load.prompts import Prompt, Prompts
from pytest_llmdeploy.load.tokenizer import ServerTokenizer, TokenizerError
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.spec import Workload
from tests.load.workloads import MODEL, VOCAB, workload
from tests.specs import REPOSITORY
from tests.standin import Fault, Standin


class Tokenizer:
    """A tokenizer with a chat template like Llama 3's (which trims), or like ChatML."""

    def __init__(self, encode: Callable[[str], Sequence[int]], *, trims: bool = True) -> None:
        self._encode, self._trims = encode, trims
        self.asked = 0

    def text(self, text: str) -> list[int]:
        self.asked += 1
        return [9000, *self._encode(text)]

    def chat(self, text: str) -> list[int]:
        self.asked += 1
        said = text.strip() if self._trims else f"{text}\n"
        head = [9001, *self._encode("system\n\nYou are a helpful assistant."), 9002]
        return [*head, 9001, *self._encode("user\n\n" + said), 9002, 9003]


@pytest.fixture(scope="session")
def bpe() -> Callable[[str], list[int]]:
    """A byte-level BPE, trained on the documents of this repository and on some English words."""
    tokenizer = pytest.importorskip("tokenizers").ByteLevelBPETokenizer()
    texts = [path.read_text() for path in sorted((REPOSITORY / "docs").rglob("*.md"))]
    known = [f" {word}" * 5 for word in preparation._FAMILIES[0]]
    tokenizer.train_from_iterator([*texts, *known], 3000, show_progress=False)
    return lambda text: list(tokenizer.encode(text).ids)


@pytest.fixture(scope="session")
def words() -> Callable[[str], list[int]]:
    """One token for each word with the space before it, and for each other sign."""
    return lambda text: [zlib.crc32(w.encode()) for w in re.findall(r" ?\w+|[^\w]", text)]


@pytest.fixture(scope="session")
def unigram() -> Callable[[str], list[int]]:
    """A SentencePiece-like tokenizer, which marks the beginnings of words."""
    tokenizer = pytest.importorskip("tokenizers").SentencePieceUnigramTokenizer()
    texts = [path.read_text() for path in sorted((REPOSITORY / "docs").rglob("*.md"))]
    known = [f"so {word} it" for word in preparation._WORDS.split() for _ in range(30)]
    tokenizer.train_from_iterator([*texts, *known], 3000, show_progress=False)
    return lambda text: list(tokenizer.encode(text).ids)


def in_bytes(text: str) -> list[int]:
    return list(text.encode())


def message(prompt: Prompt) -> str:
    (found,) = json.loads(prompt.body)["messages"]
    return str(found["content"])


def chat(**overrides: Any) -> Workload:
    return workload(endpoint="chat", **overrides)


@pytest.mark.parametrize("name", ["words", "bytes", "bpe", "unigram"])
@pytest.mark.parametrize("trims", [True, False])
def test_a_chat_s_prompts_have_exactly_the_declared_tokens(
    name: str, trims: bool, request: pytest.FixtureRequest
) -> None:
    """As the server's own tokenizer counts them, template included, whatever the tokenizer."""
    encode = in_bytes if name == "bytes" else request.getfixturevalue(name)
    tokenizer = Tokenizer(encode, trims=trims)
    work = prepared(chat(input_tokens={"uniform": [70, 900]}), tokenizer)
    prompts = Prompts(work, MODEL, VOCAB, 1)
    found = [prompts.at(index) for index in range(200)]
    assert [len(tokenizer.chat(message(p))) for p in found] == [p.input_tokens for p in found]
    assert len({message(prompt) for prompt in found}) == 200


@pytest.mark.parametrize("name", ["words", "bytes", "bpe"])
def test_a_chat_shares_what_it_declares(name: str, request: pytest.FixtureRequest) -> None:
    """The template's own beginning is part of the shared prefix."""
    encode = in_bytes if name == "bytes" else request.getfixturevalue(name)
    tokenizer = Tokenizer(encode)
    given = {"input_tokens": {"uniform": [120, 150]}, "shared_prefix": 100}
    prompts = Prompts(prepared(chat(**given), tokenizer), MODEL, VOCAB, 1)
    found = [prompts.at(index) for index in range(100)]
    ids = [tokenizer.chat(message(prompt)) for prompt in found]
    assert [len(one) for one in ids] == [prompt.input_tokens for prompt in found]
    assert {tuple(one[:100]) for one in ids} == {tuple(ids[0][:100])}
    assert len({one[100] for one in ids}) > 5
    assert len({json.loads(prompt.body)["cache_salt"] for prompt in found}) == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(50, 300), st.integers(0, 60), st.integers(0, 2**32))
def test_any_length_is_exact_or_refused(tokens: int, share: int, nonce: int) -> None:
    """Just above the template's own length, too."""
    tokenizer, shared = Tokenizer(in_bytes), min(share, tokens)
    work = chat(input_tokens=tokens, shared_prefix=shared)
    before = len(os.path.commonprefix([tokenizer.chat("Sayx"), tokenizer.chat("Sayy")]))  # noqa: RUF071
    if tokens < before + 2 or (shared and not before <= shared <= tokens - 2):
        with pytest.raises(PreparationError):
            prepared(work, tokenizer)
    else:
        prompt = Prompts(prepared(work, tokenizer), MODEL, VOCAB, nonce).at(0)
        assert len(tokenizer.chat(message(prompt))) == tokens


def test_a_template_that_is_longer_than_the_prompts_is_told() -> None:
    """And how long it is."""
    expected = r"^w: input_tokens are as few as 16, a chat of one word has 50$"
    with pytest.raises(PreparationError, match=expected):
        prepared(chat(), Tokenizer(in_bytes))


def test_a_tokenizer_without_such_words_is_told() -> None:
    """Nothing is sent that is only about as long as declared."""
    draw = random.Random(0)  # noqa: S311 - not a secret
    odd = Tokenizer(lambda text: list(text.encode()) * draw.choice([1, 2]))
    with pytest.raises(PreparationError, match="send a dataset instead"):
        prepared(chat(input_tokens=200), odd)


def dataset(folder: Path, *lines: dict[str, Any], **overrides: Any) -> Workload:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"input_tokens": {"dataset": str(path)}, "output_tokens": 3, **overrides}
    return workload(**given)


LINES = [{"prompt": f'{"h€llo " * n}"\n'} for n in range(1, 30)]


def test_a_completion_s_texts_are_sent_as_token_ids(tmp_path: Path) -> None:
    """Just those that the server makes of them; ids that were given stay what they are."""
    tokenizer = Tokenizer(in_bytes)
    work = dataset(tmp_path, *LINES, {"prompt": [7, 8]})
    counted = prepared(work, tokenizer)
    prompts = Prompts(counted, MODEL, VOCAB, 1)
    found = [json.loads(prompts.at(index).body)["prompt"] for index in range(30)]
    assert sorted(found) == sorted([*(tokenizer.text(line["prompt"]) for line in LINES), [7, 8]])
    assert [len(ids) for ids in found] == [prompts.at(index).input_tokens for index in range(30)]
    assert work.longest == 2 + 3
    assert counted.longest == 3 + max(map(len, found))
    assert counted.mean_input == pytest.approx(sum(map(len, found)) / 30)


def test_a_chat_s_texts_are_sent_as_texts(tmp_path: Path) -> None:
    """With the number of tokens that the template makes of them."""
    tokenizer = Tokenizer(in_bytes)
    prompts = Prompts(prepared(dataset(tmp_path, *LINES, endpoint="chat"), tokenizer), MODEL, 9, 1)
    found = [prompts.at(index) for index in range(29)]
    assert sorted(map(message, found)) == sorted(line["prompt"] for line in LINES)
    assert [len(tokenizer.chat(message(p))) for p in found] == [p.input_tokens for p in found]


def test_a_wrong_count_is_told_with_its_line(tmp_path: Path) -> None:
    """A count of another tokenizer would have misled the plan."""
    lines = [{"prompt": "ab", "input_tokens": 3}, {"prompt": "ab", "input_tokens": 2}]
    with pytest.raises(PreparationError, match=r"jsonl:2: input_tokens is 2, .* makes 3 of it"):
        prepared(dataset(tmp_path, *lines), Tokenizer(in_bytes))


def test_texts_share_what_they_declare(tmp_path: Path) -> None:
    """Whether they do is known when the server has made ids of them."""
    lines = [{"prompt": "common ground"}, {"prompt": "common law"}]
    prepared(dataset(tmp_path, *lines, shared_prefix=8), Tokenizer(in_bytes))
    with pytest.raises(PreparationError, match=r"shared_prefix: found 9: .* share 8 tokens"):
        prepared(dataset(tmp_path, *lines, shared_prefix=9), Tokenizer(in_bytes))


def test_a_large_dataset_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the seed draws first is counted and sent, not what comes first in the file."""
    monkeypatch.setattr(preparation, "MOST_TEXTS", 50)
    lines = [{"prompt": f"{n:04}"} for n in range(1000)]
    tokenizer = Tokenizer(in_bytes)
    work = prepared(dataset(tmp_path, *lines), tokenizer)
    data = work.parts[0].input_tokens.data
    assert data is not None
    assert len(data.entries) == tokenizer.asked == 50
    assert 300 < sum(entry.line for entry in data.entries) / 50 < 700


def test_a_server_that_is_slow_is_not_waited_for_all_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preparation has an end."""
    monkeypatch.setattr(preparation, "_MOST_SECONDS", -1)
    with pytest.raises(PreparationError, match="not tokenized within"):
        prepared(dataset(tmp_path, *LINES), Tokenizer(in_bytes))


def test_nothing_is_asked_without_texts(tmp_path: Path) -> None:
    """Token ids need no tokenizer."""
    tokenizer = Tokenizer(in_bytes)
    for work in (workload(), dataset(tmp_path, {"prompt": [1, 2]})):
        assert prepared(work, tokenizer) == work
    assert tokenizer.asked == 0


def test_the_server_s_own_tokenizer(standin: Standin) -> None:
    """/tokenize makes the ids that the server counts when it is asked to complete."""
    tokenizer = ServerTokenizer(Endpoint(standin.url), MODEL)
    assert list(tokenizer.text("h€")) == in_bytes("h€")
    work = prepared(chat(input_tokens={"uniform": [20, 90]}), tokenizer)
    prompts = Prompts(work, MODEL, VOCAB, 1)
    for index in range(5):
        prompt = prompts.at(index)
        events = standin.call("POST", work.path, json.loads(prompt.body)).events()
        usage = next(event["usage"] for event in reversed(events) if event != "[DONE]")
        assert usage["prompt_tokens"] == prompt.input_tokens
        assert usage["completion_tokens"] == prompt.output_tokens


@pytest.mark.parametrize("kind", ["http_500", "malformed_json", "empty_200", "reset", "redirect"])
def test_a_server_that_does_not_tokenize_is_told(standin: Standin, kind: Any) -> None:
    """Each failure has its text, and none is taken for tokens."""
    standin.configure(faults=[Fault(kind, path="/tokenize")])
    with pytest.raises(TokenizerError, match="/tokenize "):
        ServerTokenizer(Endpoint(standin.url), MODEL).text("hello")


def test_an_unknown_model_is_told(standin: Standin) -> None:
    """In the server's own words."""
    with pytest.raises(TokenizerError, match=r"HTTP 404: .*does not exist"):
        ServerTokenizer(Endpoint(standin.url), "other").text("hello")
