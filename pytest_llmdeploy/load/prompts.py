"""What is sent: prompts of an exact number of tokens, which no prefix cache has seen."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pytest_llmdeploy.spec import Workload
from pytest_llmdeploy.spec.dataset import Dataset
from pytest_llmdeploy.spec.tokens import Part, Tokens, Wording

_FRESH_TOKENS = 8
_LEAST_POOL = 2**15
# Prompts of the greatest length begin at as many places of the pool.
_SPARE = 2**12


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, encoded: its body, and the number of tokens that must come back."""

    body: bytes
    input_tokens: int
    output_tokens: int


class Prompts:
    """The prompts of a workload, by their number; whoever asks for one gets the same.

    Lengths and tokens depend on the seed and the number, except for those first tokens (in a chat
    and for a dataset: the cache's salt) that make it a prompt which no cache has seen: they also
    depend on the nonce of the run.
    """

    def __init__(self, workload: Workload, model: str, vocab: int, nonce: int) -> None:
        self._seed, self._nonce = workload.seed, nonce
        self._parts = workload.parts
        self._weights = [part.weight for part in self._parts]
        self._is_shared = workload.shared_prefix > 0
        self._form = _Form.chat(model) if workload.endpoint == "chat" else _Form.completion(model)
        self._decks = [_Deck.of(part, workload.seed) for part in self._parts]
        self._writer: _Ids | _Words | None = None
        if not all(self._decks):
            self._writer = _writer(workload, vocab, nonce)

    def at(self, index: int) -> Prompt:
        draw = random.Random(f"{self._seed}:{index}")  # noqa: S311 - lengths, not secrets
        kind = 0
        if len(self._parts) > 1:
            (kind,) = draw.choices(range(len(self._parts)), self._weights)
        part, deck = self._parts[kind], self._decks[kind]
        if deck is None:
            return self._made(index, part, draw)
        entry = deck.data.entries[deck.order[index % len(deck.order)]]
        output = _draw(part.output_tokens, draw) if part.output_tokens else entry.output_tokens or 1
        # A second round through the dataset finds nothing that the first one left behind.
        salt = index // len(deck.order) if self._is_shared else index
        body = self._form.body(entry.prompt, output, f"{self._nonce:x}-{salt}")
        return Prompt(body, entry.input_tokens or 0, output)

    def _made(self, index: int, part: Part, draw: random.Random) -> Prompt:
        assert self._writer is not None  # noqa: S101 - there is one if a prompt is to be made
        assert part.output_tokens is not None  # noqa: S101 - only a dataset may go without
        count, output = _draw(part.input_tokens, draw), _draw(part.output_tokens, draw)
        text, salt = self._writer.write(count, index, draw)
        return Prompt(self._form.body(text, output, salt), count, output)


def _draw(tokens: Tokens, source: random.Random) -> int:
    if tokens.fixed is not None:
        return tokens.fixed
    if tokens.uniform is not None:
        return source.randint(*tokens.uniform)
    assert tokens.lognormal is not None  # noqa: S101 - one of the three is set
    return tokens.lognormal.tokens(source.gauss())


@dataclass(frozen=True, slots=True)
class _Deck:
    """A dataset, and the order in which its prompts are sent."""

    data: Dataset
    order: Sequence[int]

    @classmethod
    def of(cls, part: Part, seed: int) -> _Deck | None:
        data = part.input_tokens.data
        if data is None:
            return None
        if any(entry.input_tokens is None for entry in data.entries):
            raise ValueError("texts are counted first: `prepared` asks the server")
        return cls(data, data.order(seed))


@dataclass(frozen=True, slots=True)
class _Form:
    """The JSON around a prompt."""

    head: bytes
    tail: bytes

    @classmethod
    def completion(cls, model: str) -> _Form:
        return cls(b'{"model":%b,"prompt":' % _json(model), _tail("max_tokens"))

    @classmethod
    def chat(cls, model: str) -> _Form:
        head = b'{"model":%b,"messages":[{"role":"user","content":' % _json(model)
        return cls(head, b"}]" + _tail("max_completion_tokens"))

    def body(self, prompt: bytes, output: int, salt: str) -> bytes:
        """The body with a prompt that is JSON."""
        end = b',"cache_salt":"%b"}' % salt.encode() if salt else b"}"
        return b"".join((self.head, prompt, self.tail % (output, output), end))


def _tail(most: str) -> bytes:
    """What follows the prompt, the number of tokens that must come back left open."""
    options = {
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        # Counts the tokens of each chunk. Ids would, too, but the first chunk would bring back all
        # ids of the prompt: a megabyte, where prompts are long, in the middle of the first token.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return b',"%b":%%d,"min_tokens":%%d,' % most.encode() + _json(options)[1:-1]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _Pool:
    """Random items in a row, so that any number of them is a slice."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = items
        self._row = b"".join(items)
        self._ends = [0, *accumulate(map(len, items))]

    def take(self, count: int, source: random.Random) -> bytes:
        """So many items that follow each other somewhere."""
        start = int(source.random() * (len(self._ends) - count))
        return self._row[self._ends[start] : self._ends[start + count]]


def _writer(workload: Workload, vocab: int, nonce: int) -> _Ids | _Words:
    size = max(_LEAST_POOL, max(part.input_tokens.most for part in workload.parts) + _SPARE)
    source = random.Random(workload.seed)  # noqa: S311 - tokens, not secrets
    if workload.endpoint == "chat":
        if workload.wording is None:
            raise ValueError("a chat's prompts need words: `prepared` asks the server for them")
        words = [piece.encode() for piece in workload.wording.pieces]
        pool = _Pool(source.choices(words, k=size))
        return _Words(workload.wording, pool, workload.shared_prefix, nonce)
    # The ends of a vocabulary hold control tokens.
    ids = range(vocab // 32, max(vocab // 32 + 1, vocab - vocab // 8))
    pool = _Pool([b"%d," % token for token in source.choices(ids, k=size)])
    return _Ids(pool, workload.shared_prefix, nonce)


class _Ids:
    """Prompts as lists of token ids."""

    def __init__(self, pool: _Pool, shared: int, nonce: int) -> None:
        self._pool, self._nonce = pool, nonce
        # Shared by the prompts of this run, and by no other's.
        self._prefix = _chosen(pool.items, shared, f"{nonce}")
        self._shared = shared

    def write(self, count: int, index: int, draw: random.Random) -> tuple[bytes, str]:
        """The JSON of a prompt, and no salt: its first tokens are fresh."""
        own = count - self._shared
        fresh = min(own, _FRESH_TOKENS)
        parts = (
            self._prefix,
            _chosen(self._pool.items, fresh, f"{self._nonce}:{index}"),
            self._pool.take(own - fresh, draw),
        )
        return b"[%b]" % b"".join(parts)[:-1], ""


class _Words:
    """Prompts as texts for a chat."""

    def __init__(self, wording: Wording, pool: _Pool, shared: int, nonce: int) -> None:
        self._wording, self._pool, self._nonce = wording, pool, nonce
        self._shared = max(0, shared - wording.before)
        self._is_shared = shared > 0
        self._begin = wording.opening.encode() + _chosen(pool.items, self._shared, f"{nonce}")

    def write(self, count: int, index: int, draw: random.Random) -> tuple[bytes, str]:
        """The JSON of a prompt that has `count` tokens in the chat template, and its salt: the
        template's own beginning would be known to a cache otherwise.
        """
        own = count - self._wording.around - self._shared
        salt = f"{self._nonce:x}" if self._is_shared else f"{self._nonce:x}-{index}"
        return b'"%b%b"' % (self._begin, self._pool.take(own, draw)), salt


def _chosen(items: Sequence[bytes], count: int, seed: str) -> bytes:
    return b"".join(random.Random(seed).choices(items, k=count))  # noqa: S311 - tokens
