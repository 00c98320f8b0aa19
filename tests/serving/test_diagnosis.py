"""Why servers of the real vLLM died, from what they wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.serving import diagnose, diagnosis

ENGINE = "(EngineCore pid=71) ERROR 11-23 03:38:07 [core.py:900] "
API = "(APIServer pid=70) "
PYDANTIC = API + "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
ROOT_CAUSE_ABOVE = (
    API + "RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {'EngineCore': 1}"
)

# What vLLM 0.32.0 wrote: the decisive line, and the last one.
RECORDED: dict[str, tuple[str, str]] = {
    "unknown flag": (
        "api_server.py: error: unrecognized arguments: --no-such-flag",
        "api_server.py: error: unrecognized arguments: --no-such-flag",
    ),
    "no model": (
        API + "huggingface_hub.errors.HFValidationError: Repo id must use alphanumeric chars, "
        "'-', '_' or '.': './nope'.",
        API + "huggingface_hub.errors.HFValidationError: see above",
    ),
    "too long": (
        API + "  Value error, User-specified max_model_len (4096) is greater than the derived "
        "max_model_len (max_position_embeddings=2048.0 or model_max_length=None in model's "
        "config.json).",
        PYDANTIC,
    ),
    "heads": (
        API + "  Value error, Total number of attention heads (4) must be divisible by tensor "
        "parallel size (3).",
        PYDANTIC,
    ),
    "cores": (
        ENGINE + "AssertionError: Given number of CPU id list ['0'] doesn't match local world "
        "size 2.",
        ROOT_CAUSE_ABOVE,
    ),
    "NUMA": (
        ENGINE + "AssertionError: Not enough allowed NUMA nodes to bind threads of 4 local "
        "CPUWorkers. Allowed NUMA nodes are [0].",
        ROOT_CAUSE_ABOVE,
    ),
    "machine too small": (
        ENGINE + "ValueError: Available memory on node 0 (16.36/17.71 GiB) on kv cache "
        "allocation is less than requested memory for kv (64.0 GiB). Decrease "
        "--kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE.",
        ROOT_CAUSE_ABOVE,
    ),
    "no cache": (
        ENGINE + "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine.",
        ROOT_CAUSE_ABOVE,
    ),
    "small cache": (
        ENGINE + "ValueError: To serve at least one request with the model's max seq len (2048), "
        "(0.0 GiB KV cache is needed, which is larger than the available KV cache memory "
        "(0.0 GiB).",
        ROOT_CAUSE_ABOVE,
    ),
    "port": (API + "OSError: [Errno 98] Address already in use", API + "Exiting."),
    "ray": (ENGINE + "ValueError: current platform cpu does not support ray.", ROOT_CAUSE_ABOVE),
    "worker": (
        ENGINE + "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down "
        "executor.",
        API + "INFO:     Application shutdown complete.",
    ),
    "engine": (
        API + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See "
        "stack trace (above) for the root cause.",
        API + "INFO:     Application shutdown complete.",
    ),
    "GPU is taken": (
        ENGINE + "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than "
        "desired GPU memory utilization (0.92, 72.8 GiB).",
        ROOT_CAUSE_ABOVE,
    ),
    "GPU is full": (
        ENGINE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ROOT_CAUSE_ABOVE,
    ),
    "links": (
        ENGINE + "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94",
        ROOT_CAUSE_ABOVE,
    ),
}
NOISE = [
    API + "INFO 11-23 03:38:01 [api_server.py:1] vLLM API server version 0.32.0",
    ENGINE + "Traceback (most recent call last):",
    ENGINE + '  File "core.py", line 890, in run_engine_core',
]


def log(decisive: str, last: str) -> str:
    return "\n".join([*NOISE, f"\x1b[0;36m{decisive}\x1b[0;0m", *NOISE[1:], last, ""])


@pytest.mark.parametrize(("decisive", "last"), RECORDED.values(), ids=RECORDED)
def test_a_recorded_death(decisive: str, last: str, snapshot: SnapshotAssertion) -> None:
    """The cause, the decisive line wherever it is, and what to change."""
    found = diagnose(log(decisive, last), 1)
    assert {"cause": found.cause, "line": found.line, "hint": found.hint} == snapshot


def test_every_known_cause_is_recorded() -> None:
    """No entry of the catalogue is without a text that it was made for."""
    raw = json.loads(Path(diagnosis.__file__).with_name("causes.json").read_text())
    causes = {entry["cause"] for entry in raw["causes"]}
    assert {diagnose(log(*lines), 1).cause for lines in RECORDED.values()} == causes


def test_the_root_of_several() -> None:
    """A worker that dies of a known cause takes the engine along: the first one is the cause."""
    text = "\n".join(RECORDED[name][0] for name in ("engine", "worker", "no cache"))
    assert diagnose(text, 1).cause == "no memory is left for the KV cache"


def test_an_unknown_error_is_quoted() -> None:
    """The first error that says something is shown, and how the process ended."""
    found = diagnose(log(ENGINE + "KeyError: 'lm_head'", ROOT_CAUSE_ABOVE), 1)
    assert str(found) == "the server ended with exit code 1: KeyError: 'lm_head'"
    found = diagnose("error: argument --compilation-config/-cc: 1 validation error\nbye\n", 2)
    assert found.cause == "the server ended with exit code 2"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "the server ended with exit code 0: bye"),
        (-9, "the server was ended by SIGKILL: bye"),
        (None, "the server does not answer: bye"),
    ],
)
def test_a_log_without_an_error(code: int | None, text: str) -> None:
    """Then the last line has to do."""
    assert str(diagnose("hello\n\n  bye  \n\n", code)) == text


def test_an_empty_log() -> None:
    """Nothing written is no reason to fail at saying so."""
    assert str(diagnose("", -11)) == "the server was ended by SIGSEGV"


def test_a_long_line_is_cut() -> None:
    """Nobody reads a line of a megabyte."""
    assert len(diagnose("ValueError: " + "x" * 10**6, 1).line) == 300
