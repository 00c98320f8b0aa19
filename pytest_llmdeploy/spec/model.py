"""The spec, version 1, as frozen typed records. Each key says below it what it is:
the reference in the docs is made from that.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from pytest_llmdeploy.facts import Gpu, gpus, vllm_flags
from pytest_llmdeploy.secrets import is_secret
from pytest_llmdeploy.spec.attach import Attach
from pytest_llmdeploy.spec.errors import FaultError, KeyPath, Problem, nearest, written
from pytest_llmdeploy.spec.record import Record
from pytest_llmdeploy.spec.require import Require, must_be_range
from pytest_llmdeploy.spec.source import Source
from pytest_llmdeploy.spec.workload import Workload
from pytest_llmdeploy.units import Bytes, Duration, Fraction

_LONGEST_NAME = 100
# A plan has a record for each.
_MOST_DEVICES = 16_384
EnvironmentName = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Model(Record):
    """Which model: `id` is a Hugging Face id, or a folder relative to the spec file. `config` is a
    config.json or its folder, or the keys of one.
    """

    id: str = Field(min_length=1)
    """The Hugging Face id, or a folder relative to the spec."""
    config: str | Mapping[str, Any] | None = None
    """The shape: a config.json or its folder, relative to the spec, or the keys of one; else the
    catalogue has it by the id, or the local Hugging Face cache.
    """
    revision: str | None = None
    """The branch, tag or commit of the model."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """The type of weights and activations; `auto` is the model's own."""
    quantization: str | None = None
    """As vLLM names it; by default what the model's config says."""

    @field_validator("config", mode="before")
    @classmethod
    def _is_a_path_or_keys(cls, raw: Any) -> Any:
        if raw is None or isinstance(raw, str | Mapping):
            return raw
        msg = f"found {written(raw)}: write the path of a config.json, or the keys of one"
        raise ValueError(msg)


class Engine(Record):
    """What the serving engine must be."""

    version: str
    """The range in which the running engine's version must be, as `">=0.30"`."""

    @model_validator(mode="after")
    def _is_a_version_range(self) -> Self:
        must_be_range("version", self.version, ">=0.30")
        return self


class Device(Record):
    """A GPU of the catalogue, `cpu`, or a device described inline by its memory."""

    name: str = Field(min_length=1)
    """A GPU of the catalogue, `cpu`, or with `memory` any name."""
    memory: Bytes | None = None
    """All memory of a device; needed where the catalogue does not know it."""
    link: Literal["nvlink", "pcie"] | None = None
    """What connects the devices of a node."""

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
    """The kind of device; its name alone will do."""
    devices_per_node: int = Field(default=1, ge=1, le=1024)
    """Devices of a node; on `cpu`, worker processes."""
    nodes: int = Field(default=1, ge=1, le=4096)
    """How many nodes there are."""

    @property
    def devices(self) -> int:
        return self.devices_per_node * self.nodes


class Parallel(Record):
    """The parallel strategy; `layers` are the layers per pipeline stage."""

    tensor: int = Field(default=1, ge=1)
    """Ways in which each layer is split (TP)."""
    pipeline: int = Field(default=1, ge=1)
    """Stages over which the layers are dealt (PP)."""
    data: int = Field(default=1, ge=1)
    """Copies of the model (DP)."""
    expert: bool = False
    """Whether the experts of a layer are dealt to ranks rather than split."""
    prefill_context: int = Field(default=1, ge=1)
    """Ranks over which a prompt is split (PCP); they take devices of their own."""
    decode_context: int = Field(default=1, ge=1)
    """Ranks of a tensor-parallel group over which the KV cache is split (DCP)."""
    layers: tuple[int, ...] | None = Field(default=None, strict=False)
    """The layers of each stage; by default vLLM's own partition."""

    @model_validator(mode="after")
    def _can_be_laid_out(self) -> Self:
        if self.devices > _MOST_DEVICES:
            msg = f"{self} takes {self.devices:,} devices: write at most {_MOST_DEVICES:,}"
            raise ValueError(msg)
        return self

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
    """The value itself; a text alone will do."""
    from_env: str | None = None
    """The variable of this run's environment to take it from: for secrets."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, raw: Any) -> Any:
        if isinstance(raw, str | int | float) and not isinstance(raw, bool):
            return {"text": str(raw)}
        if isinstance(raw, Mapping):
            return raw
        # Not what was found: it may be a secret.
        msg = "not a text: put it in quotes, or write {from_env: NAME}"
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
# What a reader of the spec must not overlook.
_KEY_ONLY = {"trust_remote_code": "say it as serve.trust_remote_code: true"}


class Serve(Record):
    """vLLM's flags by their own names, and how to start it.

    The flags that the plan reads are typed; every other one passes through as it is given.
    """

    model_config = ConfigDict(extra="allow")

    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of the longest request, input and output; by default the model's own."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a step at most."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Sequences of a step at most."""
    gpu_memory_utilization: Fraction = Fraction(0.92)
    """The part of a GPU that vLLM fills."""
    kv_cache_memory_bytes: Bytes | None = None
    """The size of the KV cache on each device, instead of what is left."""
    kv_cache_dtype: str = "auto"
    """The type of the KV cache; `auto` is the model's."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a block of the KV cache."""
    enable_chunked_prefill: bool | None = None
    """Whether a long prompt is spread over steps."""
    enforce_eager: bool | None = None
    """Whether CUDA graphs and compilation are left out."""
    async_scheduling: bool | None = None
    """Whether a step is scheduled while the one before it runs."""
    trust_remote_code: bool = False
    """Whether the server may run code that comes with the model; makes a row."""
    disable_hybrid_kv_cache_manager: bool | None = None
    """Whether all layers get the same KV cache, sliding windows included."""
    served_model_name: str | None = None
    """The name under which the server offers the model."""
    extra_args: tuple[str, ...] = Field(default=(), strict=False)
    """Arguments for what has no key; a flag given twice is an error."""
    env: Mapping[str, EnvironmentValue] = Field(default_factory=dict)
    """The server's environment, added to this run's."""
    startup_timeout: Duration = Duration(30 * 60_000)
    """How long the server may take until its first completion."""

    @model_validator(mode="after")
    def _knows_every_flag(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _ELSEWHERE:
                raise FaultError((name,), _ELSEWHERE[name])
            if name not in vllm_flags():
                raise FaultError((name,), f"vLLM has no such flag: {nearest(name, vllm_flags())}")
            if vllm_flags()[name].kind in {"boolean", "switch"} and not isinstance(value, bool):
                raise FaultError((name,), f"found {written(value)}: this flag takes true or false")
            _is_one_of(name, value)
        return self

    @model_validator(mode="after")
    def _keeps_secrets_out(self) -> Self:
        for name, value in self.env.items():
            if not EnvironmentName.fullmatch(name):
                raise FaultError(("env", name), "not a name for an environment variable")
            if value.text is not None and is_secret(name):
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
            name = aliases.get(option) or _meant(option)
            if place := _ELSEWHERE.get(name) or _KEY_ONLY.get(name):
                # Not the argument: it may be a secret.
                message = f"{option!r} has its own place: {place}"
                raise FaultError(("extra_args", index), message)
            if name in given:
                message = f"{option!r} is given twice: it is also {given[name]}"
                raise FaultError(("extra_args", index), message)
            if name in vllm_flags() and vllm_flags()[name].kind != "repeated":
                given[name] = f"serve.extra_args[{index}]"
        return self


def _meant(option: str) -> str:
    """The flag that vLLM's parser takes a long option for: a beginning of a name is enough, where
    no other one begins so.
    """
    name = option.removeprefix("--").replace("-", "_")
    for word in (name, name.removeprefix("no_")):
        if word in vllm_flags():
            return word
        begun = [flag for flag in vllm_flags() if option.startswith("--") and flag.startswith(word)]
        if len(begun) == 1:
            return begun[0]
    return name


def _is_one_of(name: str, value: Any) -> None:
    """Refuses what vLLM's parser would refuse: a value that is not among the flag's choices."""
    choices = vllm_flags()[name].choices
    for entry in value if isinstance(value, list | tuple) else [value]:
        # Some flags take their words in any case, and with dashes.
        word = str(entry).lower().replace("-", "_")
        if choices and entry is not None and entry not in choices and word not in choices:
            hint = nearest(str(entry), map(str, choices))
            raise FaultError((name,), f"found {written(entry)}: {hint}")


# Below it is a coin's toss; above it no number of requests that anybody sends is enough.
_LEAST_CONFIDENCE, _MOST_CONFIDENCE = 0.5, 0.9999


class Spec(Record):
    """What is deployed, and what it must achieve."""

    version: Literal[1]
    """The version of the spec's format."""
    extends: str | Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The files that this one changes, relative to it; of two that say the same, the last wins."""
    name: str = ""
    """What the checklist is called; by default the file's name."""
    model: Model
    """Which model."""
    engine: Engine | None = None
    """Which engine."""
    hardware: Hardware
    """What it runs on."""
    parallel: Parallel = Parallel()
    """How it is spread."""
    serve: Serve = Serve()
    """vLLM's flags by their own names, and how to start it."""
    attach: Attach | None = None
    """A server that runs elsewhere; without it, one is launched."""
    workloads: tuple[Workload, ...] = Field(default=(), strict=False, max_length=1000)
    """What is sent."""
    require: Require = Require()
    """What the deployment must be."""
    waive: Mapping[str, str] = Field(default_factory=dict)
    """Requirements that need not hold: the key or the check's name, and the reason."""
    confidence: Fraction = Fraction(0.95)
    """1 − the probability of a wrong PASS of a percentile."""
    checks: tuple[str, ...] = Field(default=(), strict=False)
    """Python files with checks of your own, relative to the spec."""

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.name.isprintable() or "/" in self.name or len(self.name) > _LONGEST_NAME:
            msg = f"write one line of up to {_LONGEST_NAME} characters, without a slash"
            raise FaultError(("name",), msg)
        names = [workload.name for workload in self.workloads]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise FaultError(("workloads",), f"the name {min(twice)!r} is given twice")
        if not _LEAST_CONFIDENCE <= self.confidence <= _MOST_CONFIDENCE:
            msg = f"found {self.confidence}: write from 50 % to 99.99 %"
            raise FaultError(("confidence",), msg)
        self._must_have_engines()
        self._must_keep_to_the_cap()
        for key, reason in self.waive.items():
            if not reason.strip():
                raise FaultError(("waive", key), "say why")
        return self

    def attached_to(self, url: str | None) -> Spec:
        """This spec with the server at `url`, if there is one, instead of the one that it names:
        the replicas and the devices of that one say nothing about another.
        """
        if url is None:
            return self
        found: Spec = self.model_copy(update={"attach": Attach.instead(self.attach, url)})
        return found

    def _must_keep_to_the_cap(self) -> None:
        """Refuses a workload that sends more at once than the server is to get."""
        most = self.attach.max_concurrency if self.attach else sys.maxsize
        for index, workload in enumerate(self.workloads):
            if (places := workload.concurrency or 0) > most:
                msg = f"found {places:,}: attach.max_concurrency allows {most:,}"
                raise FaultError(("workloads", index, "concurrency"), msg)

    def _must_have_engines(self) -> None:
        """Refuses a balance of engines where there is one, or nothing that they could share."""
        balance = self.require.balance
        for key in ("requests", "tokens"):
            if getattr(balance, key) is None:
                continue
            if self.parallel.data == 1 and not (self.attach and self.attach.engines):
                msg = "one engine has nothing to share: parallel.data is 1, without attach.engines"
                raise FaultError(("require", "balance", key), msg)
            if not self.workloads:
                raise FaultError(("require", "balance", key), "needs workloads: nothing is sent")

    @property
    def source(self) -> Source:
        return self._source

    def line(self, key: KeyPath) -> int:
        """The line (from 1) of `key`, or of the closest parent that is in a file."""
        return self._source.place(key).line

    def problem(self, key: KeyPath, message: str) -> Problem:
        """A fault at `key` that was found after loading, with its line in its file."""
        return self._source.problem(key, message)

    def resolve(self, relative: str) -> Path:
        """A path that the spec gives, relative to the spec's own folder."""
        return (self._source.path.parent / relative).resolve()

    @property
    def model_folder(self) -> Path | None:
        """The model's folder on this machine, when `model.id` names one beside the spec."""
        folder = self.resolve(self.model.id)
        # Unlike a Path it answers for any text, even one that can't be a name.
        has_config = os.path.isfile(folder / "config.json")  # noqa: PTH113
        return folder if has_config else None

    @property
    def served_model(self) -> str:
        """The id under which /v1/models must show the model."""
        return self.serve.served_model_name or str(self.model_folder or self.model.id)

    def workload(self, name: str) -> Workload:
        return next(workload for workload in self.workloads if workload.name == name)
