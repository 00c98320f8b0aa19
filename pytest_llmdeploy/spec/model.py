"""The spec, version 1, as frozen typed records. The keys are documented in docs/spec.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, model_validator

from pytest_llmdeploy.facts import Gpu, gpus, vllm_flags
from pytest_llmdeploy.spec.errors import FaultError, KeyPath, Problem, dotted, nearest
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.spec.tokens import Part, Tokens, Wording, must_say_output
from pytest_llmdeploy.units import Bytes, Duration, Fraction, Percentile, Rate

Name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
EnvironmentName = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Model(Record):
    """Which model: `id` is a Hugging Face id, or a folder relative to the spec file. `config` is a
    config.json or its folder, or the keys of one.
    """

    id: str = Field(min_length=1)
    config: str | Mapping[str, Any] | None = None
    revision: str | None = None
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    quantization: str | None = None


class Engine(Record):
    """What the serving engine must be."""

    version: str

    @model_validator(mode="after")
    def _is_a_version_range(self) -> Self:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415

        try:
            SpecifierSet(self.version)
        except InvalidSpecifier:
            msg = f'found {self.version!r}: write a version range, for instance ">=0.30"'
            raise FaultError(("version",), msg) from None
        return self


class Device(Record):
    """A GPU of the catalogue, `cpu`, or a device described inline by its memory."""

    name: str = Field(min_length=1)
    memory: Bytes | None = None
    link: Literal["nvlink", "pcie"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.name != "cpu" and self.memory is None and self.name not in gpus():
            hint = nearest(self.name, [*gpus(), "cpu"])
            msg = f"the device {self.name!r} is not in the catalogue: {hint} (or describe it: "
            raise ValueError(msg + "{name: …, memory: 80GiB})")
        return self

    @property
    def platform(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.name == "cpu" else "cuda"

    @property
    def gpu(self) -> Gpu | None:
        """The catalogue's entry, where there is one."""
        return gpus().get(self.name)

    @property
    def total_bytes(self) -> int | None:
        """All memory of one device, as NVML counts it; None where nobody declared it."""
        if self.memory is not None:
            return self.memory
        return self.gpu.memory_bytes if self.gpu else None

    @property
    def visible_bytes(self) -> int | None:
        """The memory that CUDA shows to vLLM; None where nobody declared it."""
        if self.memory is None and self.gpu:
            return self.gpu.visible_bytes
        return self.memory


class Hardware(Record):
    """What the deployment runs on. On `cpu`, a device is a worker process."""

    device: Device
    devices_per_node: int = Field(default=1, ge=1, le=1024)
    nodes: int = Field(default=1, ge=1, le=4096)

    @property
    def devices(self) -> int:
        return self.devices_per_node * self.nodes


class Parallel(Record):
    """The parallel strategy; `layers` are the layers per pipeline stage."""

    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    data: int = Field(default=1, ge=1)
    expert: bool = False
    prefill_context: int = Field(default=1, ge=1)
    decode_context: int = Field(default=1, ge=1)
    layers: tuple[int, ...] | None = Field(default=None, strict=False)

    @property
    def world_size(self) -> int:
        """Ranks of one data-parallel copy."""
        return self.tensor * self.pipeline * self.prefill_context

    @property
    def devices(self) -> int:
        return self.world_size * self.data

    @property
    def expert_size(self) -> int:
        """Ranks over which routed experts are spread: all of a stage, over all copies."""
        return self.data * self.prefill_context * self.tensor

    @property
    def expert_tensor(self) -> int:
        """Ways in which each routed expert is split: with expert parallelism none."""
        return 1 if self.expert else self.expert_size

    def __str__(self) -> str:
        parts = [f"TP {self.tensor}", f"PP {self.pipeline}", f"DP {self.data}"]
        if self.prefill_context > 1:
            parts.append(f"PCP {self.prefill_context}")
        return " × ".join(parts)


class EnvironmentValue(Record):
    """A value for the server's environment: a text, or the name of a variable to take it from."""

    text: str | None = None
    from_env: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, raw: Any) -> Any:
        if isinstance(raw, str | int | float) and not isinstance(raw, bool):
            return {"text": str(raw)}
        if isinstance(raw, Mapping):
            return raw
        msg = f"{raw!r} is not a text: put it in quotes, or write {{from_env: NAME}}"
        raise ValueError(msg)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.text is None) == (self.from_env is None):
            msg = "write a text, or {from_env: NAME}"
            raise ValueError(msg)
        return self


# Keys that have a better place in the spec, or that the gate sets itself.
_ELSEWHERE = {
    "model": "say it as model.id",
    "dtype": "say it as model.dtype",
    "quantization": "say it as model.quantization",
    "revision": "say it as model.revision",
    "tensor_parallel_size": "say it as parallel.tensor",
    "pipeline_parallel_size": "say it as parallel.pipeline",
    "data_parallel_size": "say it as parallel.data",
    "enable_expert_parallel": "say it as parallel.expert",
    "prefill_context_parallel_size": "say it as parallel.prefill_context",
    "decode_context_parallel_size": "say it as parallel.decode_context",
    "host": "the gate binds to 127.0.0.1",
    "port": "the gate chooses a free port",
    "api_key": "secrets come from the environment: serve.env: {VLLM_API_KEY: {from_env: …}}",
    "hf_token": "secrets come from the environment: serve.env: {HF_TOKEN: {from_env: …}}",
}

# Not TOKENIZERS_PARALLELISM, nor a number of TOKENS.
_SECRET = re.compile(r"KEY|TOKEN(?!IZ|S)|SECRET|PASSWORD|CREDENTIAL")


class Serve(Record):
    """vLLM's flags by their own names, and how to start it.

    The flags that the plan reads are typed; every other one passes through as it is given.
    """

    model_config = ConfigDict(extra="allow")

    max_model_len: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: Fraction = Fraction(0.92)
    kv_cache_memory_bytes: Bytes | None = None
    kv_cache_dtype: str = "auto"
    block_size: int | None = Field(default=None, ge=1)
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None
    disable_hybrid_kv_cache_manager: bool | None = None
    served_model_name: str | None = None
    extra_args: tuple[str, ...] = Field(default=(), strict=False)
    env: Mapping[str, EnvironmentValue] = Field(default_factory=dict)
    startup_timeout: Duration = Duration(30 * 60_000)

    @model_validator(mode="after")
    def _knows_every_flag(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _ELSEWHERE:
                raise FaultError((name,), _ELSEWHERE[name])
            if name not in vllm_flags():
                raise FaultError((name,), f"vLLM has no such flag: {nearest(name, vllm_flags())}")
            if vllm_flags()[name].kind in {"boolean", "switch"} and not isinstance(value, bool):
                raise FaultError((name,), f"found {value!r}: this flag takes true or false")
            _is_one_of(name, value)
        return self

    @model_validator(mode="after")
    def _keeps_secrets_out(self) -> Self:
        for name, value in self.env.items():
            if not EnvironmentName.fullmatch(name):
                raise FaultError(("env", name), "not a name for an environment variable")
            if value.text is not None and _SECRET.search(name.upper()):
                msg = f"a secret is not written into a spec: write {{from_env: {name}}}"
                raise FaultError(("env", name), msg)
        return self

    @model_validator(mode="after")
    def _says_each_flag_once(self) -> Self:
        given = {name: f"serve.{name}" for name in self.model_fields_set}
        aliases = {a: name for name, flag in vllm_flags().items() for a in flag.aliases}
        for index, argument in enumerate(self.extra_args):
            option = argument.partition("=")[0]
            if not option.startswith("-"):
                continue
            name = aliases.get(option, option.removeprefix("--").replace("-", "_"))
            name = name if name in vllm_flags() else name.removeprefix("no_")
            if name in _ELSEWHERE:
                # Not the argument: it may be a secret.
                message = f"{option!r} has its own place: {_ELSEWHERE[name]}"
                raise FaultError(("extra_args", index), message)
            if name in given:
                message = f"{option!r} is given twice: it is also {given[name]}"
                raise FaultError(("extra_args", index), message)
            if name in vllm_flags() and vllm_flags()[name].kind != "repeated":
                given[name] = f"serve.extra_args[{index}]"
        return self


def _is_one_of(name: str, value: Any) -> None:
    """Refuses what vLLM's parser would refuse: a value that is not among the flag's choices."""
    choices = vllm_flags()[name].choices
    for entry in value if isinstance(value, list | tuple) else [value]:
        # Some flags take their words in any case, and with dashes.
        word = str(entry).lower().replace("-", "_")
        if choices and entry is not None and entry not in choices and word not in choices:
            hint = nearest(str(entry), map(str, choices))
            raise FaultError((name,), f"found {entry!r}: {hint}")


class Arrival(Record):
    """How requests arrive: poisson, constant, or gamma with a burstiness (1 is poisson)."""

    gamma: float = Field(gt=0)

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
    ttft: Duration | None = None
    tpot: Duration | None = None
    e2el: Duration | None = None
    stall: Duration | None = None

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


class WorkloadRequire(Record):
    """What the deployment must achieve under one workload; each key becomes a row or more."""

    ttft: Limits = Field(default_factory=dict, validation_alias=AliasChoices("ttft", "prefill"))
    tpot: Limits = Field(default_factory=dict, validation_alias=AliasChoices("tpot", "decode"))
    itl: Limits = Field(default_factory=dict)
    e2el: Limits = Field(default_factory=dict)
    stall: Limits = Field(default_factory=dict)
    goodput: GoodputRequire | None = None
    errors: Fraction | None = None
    keeps_up: Literal[True] | None = None
    concurrent_sequences: int | None = Field(default=None, ge=1)
    preemptions: int | None = Field(default=None, ge=0)
    capacity: Rate | None = None

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
    endpoint: Literal["completions", "chat"] = "completions"
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    mix: tuple[Part, ...] = Field(default=(), strict=False, max_length=100)
    shared_prefix: int = Field(default=0, ge=0)
    rate: Rate | None = None
    arrival: Arrival = Arrival(gamma=1.0)
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    warmup: Duration = Duration(2_000)
    min_duration: Duration = Duration(0)
    max_duration: Duration = Duration(600_000)
    burst: int = Field(default=1, ge=1, le=10_000)
    indifference: tuple[Fraction, Fraction] | None = Field(default=None, strict=False)
    seed: int = Field(default=0, ge=0)
    require: WorkloadRequire = WorkloadRequire()

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


class MemoryRequire(Record):
    """Limits on every device's memory."""

    max_utilization: Fraction | None = None
    min_headroom: Bytes | None = None


class KvCacheRequire(Record):
    """How many sequences of how many tokens the KV cache holds at once."""

    concurrent_sequences: int = Field(ge=1)
    tokens_per_sequence: int | None = Field(default=None, ge=1)


class BalanceRequire(Record):
    """How far a device may be from the mean of its stage."""

    memory: Fraction | None = None
    layers: Fraction | None = None


class StrategyRequire(Record):
    """How far the declared strategy may be from the best feasible one."""

    within: Fraction


class Require(Record):
    """What the deployment must be; every key becomes a row. A mapping under another key holds
    the requirements of somebody's own checks.
    """

    model_config = ConfigDict(extra="allow")

    devices: int | None = Field(default=None, ge=1)
    memory: MemoryRequire = MemoryRequire()
    kv_cache: KvCacheRequire | None = None
    balance: BalanceRequire = BalanceRequire()
    interconnect: Literal["nvlink"] | None = None
    strategy: StrategyRequire | None = None


@dataclass(frozen=True)
class Source:
    """Where a spec was read: its file and the line of every key path."""

    path: Path = Path("<spec>")
    lines: Mapping[KeyPath, int] = field(default_factory=dict)


# Below it is a coin's toss; above it no number of requests that anybody sends is enough.
_LEAST_CONFIDENCE, _MOST_CONFIDENCE = 0.5, 0.9999


class Spec(Record):
    """What is deployed, and what it must achieve."""

    version: Literal[1]
    name: str = ""
    model: Model
    engine: Engine | None = None
    hardware: Hardware
    parallel: Parallel = Parallel()
    serve: Serve = Serve()
    workloads: tuple[Workload, ...] = Field(default=(), strict=False)
    require: Require = Require()
    waive: Mapping[str, str] = Field(default_factory=dict)
    confidence: Fraction = Fraction(0.95)
    checks: tuple[str, ...] = Field(default=(), strict=False)

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [workload.name for workload in self.workloads]
        if twice := {name for name in names if names.count(name) > 1}:
            raise FaultError(("workloads",), f"the name {min(twice)!r} is given twice")
        if not _LEAST_CONFIDENCE <= self.confidence <= _MOST_CONFIDENCE:
            msg = f"found {self.confidence}: write from 50 % to 99.99 %"
            raise FaultError(("confidence",), msg)
        for key, reason in self.waive.items():
            if not reason.strip():
                raise FaultError(("waive", key), "say why")
        return self

    @property
    def source(self) -> Source:
        return self._source

    def problem(self, key: KeyPath, message: str) -> Problem:
        """A fault at `key` that was found after loading, with its line in the file."""
        lines = self._source.lines
        known = (key[:length] for length in range(len(key), 0, -1))
        line = next((lines[part] for part in known if part in lines), 1)
        return Problem(self._source.path, line, dotted(key), message)

    def resolve(self, relative: str) -> Path:
        """A path that the spec gives, relative to the spec's own folder."""
        return (self._source.path.parent / relative).resolve()

    @property
    def model_folder(self) -> Path | None:
        """The model's folder on this machine, when `model.id` names one beside the spec."""
        folder = self.resolve(self.model.id)
        return folder if (folder / "config.json").is_file() else None

    @property
    def served_model(self) -> str:
        """The id under which /v1/models must show the model."""
        return self.serve.served_model_name or str(self.model_folder or self.model.id)

    def workload(self, name: str) -> Workload:
        return next(workload for workload in self.workloads if workload.name == name)
