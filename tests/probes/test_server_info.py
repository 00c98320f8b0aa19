"""What a server says of its settings, in each of the places where one does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.probes.server_info import (
    Setting,
    parallel_sizes,
    read_settings,
    settings_in_dev_mode,
    settings_told,
)
from tests.exporter import pages
from tests.standin import Standin

SERVER_INFO = "/server_info?config_format=json"
CONFIG: dict[str, Any] = {
    "model_config": {"dtype": "torch.float32", "max_model_len": 512, "hf_token": "s3cret"},
    "parallel_config": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
    "cache_config": {"cache_dtype": "auto", "kv_cache_memory_bytes": None},
    "scheduler_config": {"max_num_seqs": 64, "max_num_batched_tokens": [2048]},
}


@pytest.mark.parametrize(
    ("fingerprint", "sizes"),
    [
        ("vllm-0.32.0-tp2-ba1c0945", {"tp": 2, "pp": 1, "dp": 1}),
        ("vllm-0.32.0-tp16-pp2-dp4-ep-ba1c0945", {"tp": 16, "pp": 2, "dp": 4}),
        ("vllm-0.32.0-be3d339b", {"tp": 1, "pp": 1, "dp": 1}),
        ("vllm-0.33.0.dev1+gabc-tp2-nohash", {"tp": 2, "pp": 1, "dp": 1}),
        ("our-own-name", {}),
        ("", {}),
    ],
)
def test_sizes_in_a_fingerprint(fingerprint: str, sizes: dict[str, int]) -> None:
    """Sizes of 1 are not in it; a name of somebody's own says nothing."""
    assert parallel_sizes(fingerprint) == sizes


def test_what_everybody_is_told() -> None:
    """Each with its source, by its type; a label that says None says nothing."""
    labels = {
        "block_size": "128",
        "gpu_memory_utilization": "0.92",
        "enable_prefix_caching": "True",
        "kv_cache_memory_bytes": "None",
        "cache_dtype": "fp8_e4m3",
        "engine": "0",
    }
    model = {"id": "m", "max_model_len": 512}
    assert settings_told(model, "0.32.0", {"tp": 2}, labels) == {
        "model": Setting("m", "/v1/models"),
        "max_model_len": Setting(512, "/v1/models"),
        "version": Setting("0.32.0", "/version"),
        "tp": Setting(2, "system_fingerprint"),
        "block_size": Setting(128, "vllm:cache_config_info"),
        "gpu_memory_utilization": Setting(0.92, "vllm:cache_config_info"),
        "enable_prefix_caching": Setting(True, "vllm:cache_config_info"),
        "kv_cache_dtype": Setting("fp8_e4m3", "vllm:cache_config_info"),
    }
    assert settings_told({}, "", {}, {}) == {}


def test_dev_mode() -> None:
    """What is compared is taken out of the configuration, and nothing else, secrets least."""
    texts = {
        SERVER_INFO: json.dumps({"vllm_config": CONFIG}),
        "/get_world_size": '{"world_size": 2}',
    }
    with pages(texts) as found:
        shown = settings_in_dev_mode(Endpoint(found.url))
    assert {name: each.value for name, each in shown.items()} == {
        "dtype": "float32",
        "max_model_len": 512,
        "tp": 2,
        "pp": 1,
        "kv_cache_dtype": "auto",
        "max_num_seqs": 64,
        "world_size": 2,
    }
    assert {each.source for each in shown.values()} == {"/server_info", "/get_world_size"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"vllm_config": "model=…"}', '{"vllm_config": {"model_config": 1}}']
)
def test_other_servers_say_nothing_there(text: str) -> None:
    """Without dev mode, with one of another version, or with garbage, the settings are unseen."""
    with pages({SERVER_INFO: text, "/get_world_size": text} if text else {}) as found:
        assert settings_in_dev_mode(Endpoint(found.url)) == {}


def test_a_replica_is_asked_for_everything(standin: Standin) -> None:
    """Its model among several, its labels, and by one token its fingerprint."""
    shown = read_settings(Endpoint(standin.url), "tiny-llama")
    values = {name: each.value for name, each in shown.items()}
    assert {
        "model": "tiny-llama",
        "tp": 2,
        "dp": 1,
        "num_gpu_blocks": 4096,
    }.items() <= values.items()
    (asked,) = standin.requests()
    assert asked["body"]["max_tokens"] == 1


def test_a_replica_that_is_not_there() -> None:
    """Nothing is seen of it."""
    assert read_settings(Endpoint("http://127.0.0.1:1"), "m") == {}


def test_calling_workers() -> None:
    """One POST with the method and its time, and what each answered."""
    with pages({"/collective_rpc": '{"results": [{"pid": 1}, null]}'}) as found:
        assert Endpoint(found.url).call_workers("facts", 3.0) == [{"pid": 1}, None]
    assert [json.loads(body) for body in found.posted] == [{"method": "facts", "timeout": 3.0}]


@pytest.mark.parametrize(("text", "status"), [("{}", 200), ("", 200), ('{"results": []}', 500)])
def test_a_call_that_fails(text: str, status: int) -> None:
    """It is an error with the address, and is not tried again."""
    with pages({"/collective_rpc": text}) as found:
        found.status = status
        with pytest.raises(EndpointError, match=r"http://.*/collective_rpc "):
            Endpoint(found.url).call_workers("facts", 3.0)
    assert len(found.posted) == 1
