"""Every knob of the stand-in server, and how the knobs travel as JSON."""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

FaultKind = Literal[
    "stalled_stream",
    "reset",
    "truncated",
    "malformed_json",
    "http_400",
    "http_429",
    "http_500",
    "http_503",
    "endless_headers",
    "empty_200",
    "sse_error",
    "huge_line",
    "redirect",
    "abort_finish",
    "wrong_count",
    "silent",
    "garbage",
    "endless_body",
    "die",
    "health_503",
]
Routing = Literal["round_robin", "first"]
Share = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave, for a seeded fraction of the requests after the first few."""

    kind: FaultKind
    fraction: float = 1.0
    #: How many completion requests have to arrive first.
    after: int = 0
    #: Where it strikes; empty means both completion endpoints (health_503: /health).
    path: str = ""
    #: It strikes only prompts of so many token ids, and draws among these alone; 0 means all.
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            msg = f"unknown fault kind {self.kind!r}; known: {', '.join(get_args(FaultKind))}"
            raise ValueError(msg)
        if not 0 <= self.fraction <= 1:
            msg = f"fault {self.kind}: fraction {self.fraction} is not between 0 and 1"
            raise ValueError(msg)

    def strikes_at(self, path: str, prompt_tokens: int = 0) -> bool:
        """Whether this fault is meant for requests to `path`, with such a prompt."""
        if self.prompt_tokens not in {0, prompt_tokens}:
            return False
        if self.path:
            return path == self.path
        return path == "/health" if self.kind == "health_503" else path in {COMPLETIONS, CHAT}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server pretends to be; times in milliseconds, fractions from 0 to 1."""

    model: str = "tiny-llama"
    root: str = "./tiny"
    version: str = "0.32.0"
    tensor_parallel: int = 2
    max_model_len: int = 512
    vocab_size: int = 259

    #: Data-parallel engines, each with `max_num_seqs` seats of its own.
    engines: int = 1
    routing: Routing = "round_robin"
    max_num_seqs: int = 64

    ttft_ms: float = 1.0
    tpot_ms: float = 1.0
    #: (fraction of requests, milliseconds) pairs that override the constant.
    ttft_slow: tuple[Share, ...] = ()
    tpot_slow: tuple[Share, ...] = ()
    #: Tokens per streamed chunk.
    chunk_tokens: int = 1
    #: Where an answer ends by itself, unless min_tokens or ignore_eos forbid it.
    eos_after: int = 16

    block_size: int = 128
    #: KV-cache blocks of one engine.
    num_gpu_blocks: int = 4096
    #: Labels of vllm:cache_config_info to override or add.
    cache_config: Mapping[str, str] = field(default_factory=dict)
    prefix_hit_fraction: float = 0.0
    preemptions_per_request: float = 0.0

    api_key: str = ""
    seed: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        # JSON has made lists of the tuples and objects of the faults.
        given: Iterable[Any] = self.faults
        faults = tuple(f if isinstance(f, Fault) else Fault(**f) for f in given)
        object.__setattr__(self, "faults", faults)
        for name in ("ttft_slow", "tpot_slow"):
            pairs = tuple((share, ms) for share, ms in getattr(self, name))
            object.__setattr__(self, name, pairs)
        for name in ("engines", "max_num_seqs", "chunk_tokens", "eos_after", "max_model_len"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; it has to be at least 1"
                raise ValueError(msg)

    def updated(self, knobs: Mapping[str, Any]) -> Self:
        """Return a copy with some knobs turned; ValueError names an unknown knob."""
        known = [knob.name for knob in fields(self)]
        if unknown := sorted(knobs.keys() - set(known)):
            msg = f"unknown knob {', '.join(unknown)}; known: {', '.join(known)}"
            raise ValueError(msg)
        return replace(self, **knobs)

    def to_json(self) -> str:
        """Write every knob as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote; knobs left out keep their defaults."""
        return cls().updated(json.loads(text))

    def _draw(self, ordinal: int, what: str) -> float:
        return random.Random(f"{self.seed}:{ordinal}:{what}").random()  # noqa: S311

    def ttft(self, ordinal: int) -> float:
        """Seconds from a seat to the first token, for the request with this number."""
        return _pick(self._draw(ordinal, "ttft"), self.ttft_slow, self.ttft_ms) / 1000

    def tpot(self, ordinal: int) -> float:
        """Seconds per further token, for the request with this number."""
        return _pick(self._draw(ordinal, "tpot"), self.tpot_slow, self.tpot_ms) / 1000

    def fault(
        self, path: str, ordinal: int, completions: int, alike: tuple[int, int] = (0, 0)
    ) -> FaultKind | None:
        """Return the first fault that strikes the `ordinal`th request to `path`, if any.

        `alike` is how many token ids its prompt has, and how many such prompts came before.
        """
        for index, fault in enumerate(self.faults):
            if (
                fault.strikes_at(path, alike[0])
                and completions >= fault.after
                and self._draw(alike[1] if fault.prompt_tokens else ordinal, f"fault{index}")
                < fault.fraction
            ):
                return fault.kind
        return None

    def preemptions(self, ordinal: int) -> int:
        """Whole preemptions of this request, so that n requests add up to n times the rate."""
        rate = self.preemptions_per_request
        return int((ordinal + 1) * rate) - int(ordinal * rate)


def _pick(draw: float, shares: tuple[Share, ...], otherwise: float) -> float:
    for fraction, value in shares:
        if draw < fraction:
            return value
        draw -= fraction
    return otherwise
