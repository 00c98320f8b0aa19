"""What is sent to the server, and what it must achieve meanwhile: the workloads of a spec."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, PrivateAttr, model_validator

from pytest_llmdeploy.spec.errors import FaultError
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.spec.tokens import Part, Tokens, Wording, must_say_output
from pytest_llmdeploy.units import Duration, Fraction, Percentile, Rate

Name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
# A schedule is made before the first request is sent.
_MOST_REQUESTS = 10_000_000
# What decides the load on a server.
_SENT = (
    "endpoint",
    "input_tokens",
    "output_tokens",
    "mix",
    "shared_prefix",
    "rate",
    "arrival",
    "concurrency",
)
_STALL_TIMEOUT = Duration(60_000)


class Arrival(Record):
    """How requests arrive: poisson, constant, or gamma with a burstiness (1 is poisson)."""

    gamma: float = Field(gt=0)
    """Burstiness: 1 is poisson, less is burstier, more is more even."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, raw: Any) -> Any:
        named = {"poisson": {"gamma": 1.0}, "constant": {"gamma": float("inf")}}
        if isinstance(raw, str):
            if raw not in named:
                msg = f"found {raw!r}: write poisson, constant or {{gamma: burstiness}}"
                raise ValueError(msg)
            return named[raw]
        return raw


Limits = Mapping[Percentile, Duration]

# What p99 allows; an indifference zone is written for it, and scaled to other percentiles.
_ONE_PERCENT = 0.01


class GoodputRequire(Record):
    """The share of requests that keep every limit given here at once."""

    share: Fraction
    """The part of the requests that keep every limit."""
    ttft: Duration | None = None
    """Time to the first token, at most."""
    tpot: Duration | None = None
    """Time per token after the first, at most."""
    e2el: Duration | None = None
    """Time to the last token, at most."""
    stall: Duration | None = None
    """The longest silence within a request, at most."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if not 0 < self.share < 1:
            raise FaultError(
                ("share",), f"found {self.share}: write more than 0 % and less than 100 %"
            )
        if not self.limits:
            raise ValueError("give at least one limit: ttft, tpot, e2el or stall")
        return self

    @property
    def limits(self) -> Mapping[str, Duration]:
        """The limits by metric."""
        found = {metric: getattr(self, metric) for metric in ("ttft", "tpot", "e2el", "stall")}
        return {metric: limit for metric, limit in found.items() if limit is not None}

    def __str__(self) -> str:
        return ", ".join(f"{metric.upper()} ≤ {limit}" for metric, limit in self.limits.items())


Tolerances = Mapping[Percentile, Fraction]


class WorkloadRegressionRequire(Record):
    """By how much latencies may be longer than in an earlier run, by percentile."""

    ttft: Tolerances = Field(default_factory=dict)
    """Of the time to the first token."""
    tpot: Tolerances = Field(default_factory=dict)
    """Of the time per token after the first."""
    e2el: Tolerances = Field(default_factory=dict)
    """Of the time to the last token."""

    @property
    def limits(self) -> Mapping[str, Tolerances]:
        """By metric, for the metrics that have any."""
        metrics = ("ttft", "tpot", "e2el")
        return {metric: limits for metric in metrics if (limits := getattr(self, metric))}


class WorkloadRequire(Record):
    """What the deployment must achieve under one workload; each key becomes a row or more."""

    ttft: Limits = Field(default_factory=dict, validation_alias=AliasChoices("ttft", "prefill"))
    """Time to the first token, by percentile; also written `prefill`."""
    tpot: Limits = Field(default_factory=dict, validation_alias=AliasChoices("tpot", "decode"))
    """Time per token after the first, by percentile; also written `decode`."""
    itl: Limits = Field(default_factory=dict)
    """Gaps between tokens, by percentile."""
    e2el: Limits = Field(default_factory=dict)
    """Time to the last token, by percentile."""
    stall: Limits = Field(default_factory=dict)
    """The longest silence within a request, by percentile."""
    goodput: GoodputRequire | None = None
    """The part of the requests that are within several limits at once."""
    errors: Fraction | None = None
    """The part of the requests that may fail."""
    keeps_up: Literal[True] | None = None
    """What arrives is served, and no backlog grows; needs a `rate`."""
    concurrent_sequences: int | None = Field(default=None, ge=1)
    """So many sequences run at once at some time."""
    preemptions: int | None = Field(default=None, ge=0)
    """No more sequences are preempted."""
    capacity: Rate | None = None
    """The rate at which every other limit still holds; needs a `rate`."""
    regression: WorkloadRegressionRequire = WorkloadRegressionRequire()
    """How much slower it may be than in the run of `--deploy-baseline`."""

    @model_validator(mode="before")
    @classmethod
    def _says_it_once(cls, raw: Any) -> Any:
        for plain, term in (("prefill", "ttft"), ("decode", "tpot")):
            if isinstance(raw, Mapping) and {plain, term} <= raw.keys():
                msg = f"{plain} and {term} are the same requirement: keep one"
                raise ValueError(msg)
        return raw

    @property
    def latency(self) -> Mapping[str, Limits]:
        """The limits by metric, for the metrics that have any."""
        metrics = ("ttft", "tpot", "itl", "e2el", "stall")
        return {metric: limits for metric in metrics if (limits := getattr(self, metric))}

    @property
    def has_limit(self) -> bool:
        """Whether anything here can stop holding as the rate grows."""
        others = (self.goodput, self.errors, self.keeps_up, self.preemptions)
        return bool(self.latency) or any(other is not None for other in others)


class Workload(Record):
    """What is sent: open loop with a `rate`, or closed loop with a `concurrency`."""

    name: str
    """What its rows are called."""
    endpoint: Literal["completions", "chat"] = "completions"
    """`completions` sends token ids, `chat` one user message."""
    input_tokens: Tokens | None = None
    """The length of prompts, or the file that they are in."""
    output_tokens: Tokens | None = None
    """The length of answers."""
    mix: tuple[Part, ...] = Field(default=(), strict=False, max_length=100)
    """Kinds of requests, instead of the two keys above."""
    shared_prefix: int = Field(default=0, ge=0)
    """Tokens with which all prompts begin."""
    rate: Rate | None = None
    """Requests per second, sent whether or not earlier ones are answered: an open loop."""
    arrival: Arrival = Arrival(gamma=1.0)
    """How requests of an open loop come."""
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """Requests in flight, each followed by the next: a closed loop."""
    warmup: Duration = Duration(2_000)
    """What is due in this time is sent and not measured."""
    min_duration: Duration = Duration(0)
    """Nothing is decided on what was due in this time alone."""
    max_duration: Duration = Duration(600_000)
    """When sending ends, decided or not."""
    stall_timeout: Duration | None = None
    """A request that gets no byte for so long is given up."""
    burst: int = Field(default=1, ge=1, le=10_000)
    """Requests over the limit may come so many at a time, on average."""
    indifference: tuple[Fraction, Fraction] | None = Field(default=None, strict=False)
    """Of a p99: with at most the first over it must pass, with the second or more it must fail."""
    seed: int = Field(default=0, ge=0)
    """Decides arrivals, lengths, tokens and the order of a dataset."""
    require: WorkloadRequire = WorkloadRequire()
    """What must hold meanwhile."""

    _wording: Wording | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_one_kind_of_loop(self) -> Self:
        if not Name.fullmatch(self.name):
            raise FaultError(
                ("name",), f"found {self.name!r}: write letters, digits, '.', '_' and '-'"
            )
        if (self.rate is None) == (self.concurrency is None):
            msg = "give either rate (open loop) or concurrency (closed loop)"
            raise ValueError(msg)
        if self.rate is not None and not self.rate:
            raise FaultError(("rate",), "a rate of 0 sends nothing")
        if self.rate and self.rate * self.max_duration.seconds > _MOST_REQUESTS:
            msg = f"{self.rate} for {self.max_duration} are more than {_MOST_REQUESTS:,} requests"
            raise FaultError(("max_duration",), msg)
        if self.require.keeps_up and self.rate is None:
            msg = "needs a rate: a closed loop waits for the server"
            raise FaultError(("require", "keeps_up"), msg)
        return self

    @model_validator(mode="after")
    def _says_what_is_sent(self) -> Self:
        if self.mix:
            for key in ("input_tokens", "output_tokens"):
                if getattr(self, key) is not None:
                    raise FaultError((key,), "each part of the mix has its own")
            return self
        if self.input_tokens is None:
            raise FaultError(("input_tokens",), "is required, or a mix")
        must_say_output(self.input_tokens, self.output_tokens)
        return self

    @model_validator(mode="after")
    def _waits_for_what_is_in_time(self) -> Self:
        """Refuses to give up a request that is within its limits."""
        found, longest = self.stall_timeout, self._longest_silence
        if found is not None and (not found or found < longest):
            why = f": a request may be silent for {longest} by its limits" if longest else ""
            raise FaultError(("stall_timeout",), f"found {found}{why or ': write more than 0 s'}")
        return self

    @property
    def sent(self) -> Mapping[str, str]:
        """What is sent and how fast, in words: latencies under another are not comparable."""
        given = self.model_dump(include=set(_SENT), exclude_none=True)
        return {key: str(given[key]) for key in _SENT if key in given}

    @property
    def patience(self) -> Duration:
        """So long a request may be silent before it is given up."""
        return self.stall_timeout or max(_STALL_TIMEOUT, self._longest_silence)

    @property
    def _longest_silence(self) -> Duration:
        """That is within the limits; 0 without any."""
        each = self.require.goodput.limits if self.require.goodput else {}
        limits = (*self.require.ttft.values(), *self.require.stall.values())
        silences = (*limits, *(each[metric] for metric in ("ttft", "stall") if metric in each))
        return max(silences, default=Duration(0))

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        datasets = [part.input_tokens.data for part in self.parts if part.input_tokens.data]
        if self.endpoint == "chat":
            for data in datasets:
                if ids := next((e for e in data.entries if not e.is_text), None):
                    msg = f"chat sends texts; the prompt at {data.path}:{ids.line} is token ids"
                    raise FaultError(("endpoint",), msg)
        if fault := self.prefix_fault:
            raise FaultError(("shared_prefix",), fault)
        return self

    @model_validator(mode="after")
    def _can_have_a_capacity(self) -> Self:
        capacity, key = self.require.capacity, ("require", "capacity")
        if capacity is None:
            return self
        if self.rate is None:
            raise FaultError(key, "needs a rate: a closed loop waits for the server")
        if not capacity:
            raise FaultError(key, "a rate of 0 sends nothing")
        if not self.require.has_limit:
            raise FaultError(key, "nothing has to hold at this rate: give a limit, as ttft or tpot")
        return self

    @property
    def prefix_fault(self) -> str:
        """Why the prompts can't share that much; empty when they do, or when it is not known."""
        found, datasets = f"found {self.shared_prefix}", [p.input_tokens.data for p in self.parts]
        shortest = min(part.input_tokens.least for part in self.parts)
        if not self.shared_prefix:
            return ""
        if len(datasets) > 1 and any(datasets):
            return "a dataset brings its own prefix, which other parts of the mix don't share"
        if self.shared_prefix > shortest:
            return f"{found}: the shortest input has {shortest} tokens"
        shared = datasets[0].shared_ids if datasets[0] else None
        if shared is not None and shared < self.shared_prefix:
            return f"{found}: the prompts of the dataset share {shared} tokens"
        return ""

    @property
    def parts(self) -> Sequence[Part]:
        """The kinds of requests; one, unless there is a mix."""
        if self.mix:
            return self.mix
        assert self.input_tokens is not None  # noqa: S101 - one of the two is given
        given, wanted = self.input_tokens, self.output_tokens
        return (Part.model_construct(weight=1.0, input_tokens=given, output_tokens=wanted),)

    @property
    def mean_input(self) -> float:
        """Tokens of a prompt, on average."""
        return self._mean([part.input_tokens.mean for part in self.parts])

    @property
    def mean_output(self) -> float:
        """Tokens of an answer, on average."""
        return self._mean([part.mean_output for part in self.parts])

    @property
    def longest(self) -> int:
        """Input and output of the longest request; texts that nobody has counted left out."""
        return max(part.longest for part in self.parts)

    @property
    def expected_hit_rate(self) -> float:
        """The share of the prompt tokens that a prefix cache may know: the shared prefix."""
        return min(1.0, self.shared_prefix / self.mean_input)

    @property
    def wording(self) -> Wording | None:
        """How texts of an exact length are made for a chat, once a server was asked."""
        return self._wording

    def with_wording(self, wording: Wording) -> Self:
        """This workload, to be sent in these words."""
        copy = self.model_copy()
        copy._wording = wording  # noqa: SLF001 - a copy of this record
        return copy

    @property
    def path(self) -> str:
        """Where requests are sent to."""
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    def _mean(self, values: Sequence[float]) -> float:
        weights = [part.weight for part in self.parts]
        pairs = zip(weights, values, strict=True)
        return math.fsum(weight * value for weight, value in pairs) / math.fsum(weights)

    @model_validator(mode="after")
    def _can_be_decided(self) -> Self:
        longest = max(0.0, self.max_duration - self.warmup)
        if self.min_duration > longest:
            raise FaultError(
                ("min_duration",),
                f"found {self.min_duration}: max_duration leaves {Duration(longest)} to measure",
            )
        if self.indifference is not None:
            low, high = self.indifference
            if not 0 < low < high <= _ONE_PERCENT:
                msg = f"found [{low}, {high}]: write [good, bad] as fractions for p99, bad ≤ 1 %"
                raise FaultError(("indifference",), msg)
        return self
