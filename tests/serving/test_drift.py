"""The settings of a running server beside those of its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.probes.server_info import Setting, Settings
from pytest_llmdeploy.serving.drift import declared, drift
from tests.plan.deployments import made, tiny

URL = "http://server"
# What the two-rank deployment on the CPU resolves to.
TINY: Mapping[str, Any] = {
    "model": "tiny-llama",
    "version": ">=0.30",
    "tp": 2,
    "pp": 1,
    "dp": 1,
    "world_size": 2,
    "max_model_len": 512,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "block_size": 128,
    "kv_cache_dtype": "auto",
    "kv_cache_memory_bytes": 256 * 1024**2,
    "enable_prefix_caching": True,
    "num_gpu_blocks": 1024,
    "kv_cache_size_tokens": 131072,
    "dtype": "float32",
}
ENGINE = {"engine": {"version": ">=0.30"}}


def shown(source: str = "/server_info", **changes: Any) -> Settings:
    """A server that is as declared, but for the changes (None: it does not show that)."""
    found = {**TINY, "version": "0.32.0", **changes}
    return {name: Setting(value, source) for name, value in found.items() if value is not None}


def judged(*servers: Settings, replicas: int = 0, **spec: Any) -> Judgement:
    """What is said of servers that should be the two-rank deployment."""
    found = {f"{URL}{index or ''}": each for index, each in enumerate(servers)}
    return drift(plan(tiny(**{**ENGINE, **spec})), found, replicas)


def test_what_is_declared() -> None:
    """What the spec says, and what vLLM makes of the rest, as far as the plan knows."""
    assert declared(plan(tiny(**ENGINE)), 1) == TINY


def test_a_server_as_declared() -> None:
    """Everything is seen, and everything is in the evidence."""
    found = judged(shown())
    assert (found.status, found.result) == (Status.PASS, "16 match")
    assert found.requirement == "16 settings as declared"
    assert found.evidence["servers"][URL]["tp"] == {
        "declared": 2,
        "shown": 2,
        "source": "/server_info",
        "verdict": "MATCHES",
    }


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *((name, value + 1) for name, value in TINY.items() if type(value) is int),
        *((name, "another") for name in ("model", "dtype", "kv_cache_dtype")),
        ("version", "0.29.1"),
        ("enable_prefix_caching", False),
    ],
)
def test_one_setting_that_differs(name: str, other: Any) -> None:
    """It fails and is named with both values, whichever it is."""
    found = judged(shown(**{name: other}))
    assert found.status is Status.FAIL
    assert found.result == f"{name} is {other}, not {TINY[name]}; 15 match"
    assert found.evidence["servers"][URL][name]["verdict"] == "DIFFERS"


def test_what_cannot_be_seen_is_counted() -> None:
    """It is no failure, and it is not hidden."""
    found = judged(shown(dtype=None, max_num_seqs=None))
    assert (found.status, found.result) == (Status.PASS, "14 match, 2 cannot be seen")
    assert found.evidence["servers"][URL]["dtype"] == {
        "declared": "float32",
        "shown": None,
        "source": None,
        "verdict": "cannot be seen",
    }


def test_nothing_seen_decides_nothing() -> None:
    """A server that shows none of its settings is neither the declared one nor another."""
    found = judged({})
    assert found.status is Status.INCONCLUSIVE
    assert found.result == "the server shows none of them (16 cannot be seen)"


def test_the_one_of_several_that_differs() -> None:
    """It is named; what all have alike is said once."""
    found = judged(shown(), shown(max_num_seqs=8), shown(max_num_seqs=8), replicas=2)
    assert found.result == f"max_num_seqs is 8, not 256 ({URL}1, {URL}2); 15 match"
    everywhere = judged(shown(tp=1), shown(tp=1), replicas=1)
    assert everywhere.result == "tp is 1, not 2; 15 match"


def test_what_one_of_several_shows_is_seen() -> None:
    """The address of all may hide what each replica says."""
    assert judged({}, shown(), replicas=1).result == "16 match"


COPIES: dict[str, Any] = {"parallel": {"tensor": 1, "data": 2}}
TOGETHER: dict[str, Any] = {"tp": 1, "dp": 2, "kv_cache_size_tokens": 65536, "num_gpu_blocks": 1024}
APART: dict[str, Any] = {**TOGETHER, "dp": 1, "world_size": 1, "num_gpu_blocks": 512}
DEFAULTS: dict[str, Any] = {"max_num_seqs": 128, "max_num_batched_tokens": 2048}


def test_copies_in_one_server() -> None:
    """It adds up their blocks, and not their tokens."""
    assert judged(shown(**TOGETHER, **DEFAULTS), **COPIES).result == "16 match"


def test_copies_that_are_replicas() -> None:
    """As many replicas as copies: each is one, with the blocks of one."""
    one = shown(**APART, **DEFAULTS)
    assert judged(one, one, one, replicas=2, **COPIES).result == "16 match"
    assert judged(one, **COPIES).result.startswith("dp is 1, not 2, world_size is 1, not 2, num_")


def test_a_fingerprint_that_is_only_a_hash_says_nothing_of_sizes() -> None:
    """It looks as if all were 1."""
    sizes = {name: Setting(1, "system_fingerprint") for name in ("tp", "pp", "dp")}
    others = shown(tp=None, pp=None, dp=None)
    assert judged({**others, **sizes}).status is Status.FAIL
    hidden = judged({**others, **sizes}, serve={"fingerprint_mode": "hash"})
    assert hidden.result == "13 match, 3 cannot be seen"


def test_flags_in_extra_args_are_declared_too() -> None:
    """Blocks are not known where they change what the plan has not read."""
    extra = {"extra_args": ["--max-num-seqs", "8", "--block-size=64"]}
    found = declared(plan(tiny(serve=extra)), 1)
    assert (found["max_num_seqs"], found["block_size"]) == (8, 64)
    assert not {"num_gpu_blocks", "kv_cache_size_tokens"} & set(found)
    assert "max_num_seqs" in declared(plan(tiny(serve={"extra_args": ["--no-such"]})), 1)


def test_what_the_plan_knows_in_ranges_is_not_declared() -> None:
    """On a GPU, the blocks follow from what is measured at the start."""
    found = declared(plan(made()), 1)
    assert found["gpu_memory_utilization"] == 0.85
    assert not {"num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_memory_bytes"} & set(found)
    fixed = declared(plan(made(serve={"kv_cache_memory_bytes": "10GiB"})), 1)
    assert {"num_gpu_blocks", "kv_cache_size_tokens"} <= set(fixed)


def test_blocks_that_are_overridden() -> None:
    """The flag says how many, for each copy."""
    found = declared(plan(tiny(serve={"num_gpu_blocks_override": 100})), 2)
    assert found["num_gpu_blocks"] == 200
    assert "kv_cache_size_tokens" not in found


def test_defaults_that_other_flags_change_are_not_declared() -> None:
    """What the plan does not know is not held against a server."""
    found = declared(plan(tiny(serve={"performance_mode": "throughput"})), 1)
    assert not {"max_num_seqs", "max_num_batched_tokens"} & set(found)
    found = declared(plan(tiny(model={"id": "nobody/knows", "dtype": "auto"})), 1)
    assert not {"dtype", "block_size", "enable_prefix_caching", "num_gpu_blocks"} & set(found)


@pytest.mark.parametrize(
    ("said", "other", "status"),
    [
        ("fp8", "fp8_e4m3", Status.PASS),
        ("fp8", "auto", Status.FAIL),
        ("fp8_e5m2", "fp8_e4m3", Status.FAIL),
    ],
)
def test_formats_of_the_kv_cache(said: str, other: str, status: Status) -> None:
    """Of fp8, the platform chooses which."""
    serve = {"kv_cache_dtype": said}
    blocks: dict[str, Any] = {"num_gpu_blocks": None, "kv_cache_size_tokens": None}
    assert judged(shown(kv_cache_dtype=other, **blocks), serve=serve).status is status
