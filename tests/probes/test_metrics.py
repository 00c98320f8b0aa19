"""What a vLLM says at /metrics, read in two ways that agree."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.probes.metrics import Metrics, quick_samples
from tests.standin import Standin

NAMES = ("vllm:num_requests_running", "vllm:num_preemptions_total", "vllm:num_requests_waiting")
FINITE = st.floats(min_value=0, max_value=1e12)
LABEL = st.text(st.characters(codec="utf-8", exclude_characters='\\"\n\r'), max_size=8)


def quickly(page: bytes, name: str) -> dict[str, float]:
    """The sum per engine, of the quick reading."""
    engines: dict[str, float] = {}
    for _, engine, value in quick_samples(page, [name]):
        engines[engine] = engines.get(engine, 0.0) + value
    return engines


def test_by_engine() -> None:
    """Each data-parallel engine has its own figure, and the total is their sum."""
    with Standin(engines=2, preemptions_per_request=1) as standin:
        body = {"model": "tiny-llama", "prompt": [1], "max_tokens": 1}
        for _ in range(3):
            standin.call("POST", "/v1/completions", body)
        text = standin.call("GET", "/metrics").body
    metrics = Metrics.parse(text.decode(), 0.0)
    assert metrics.by_engine("vllm:num_preemptions_total") == {"0": 2, "1": 1}
    assert metrics.total("vllm:num_preemptions_total") == 3
    assert len(metrics.labels("vllm:cache_config_info")) == 2
    for name in NAMES:
        assert quickly(text, name) == metrics.by_engine(name)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), LABEL, FINITE)))
def test_the_quick_reading_agrees_with_the_whole(samples: list[tuple[str, str, float]]) -> None:
    """Whatever the labels, the quick sum per engine is the parsed one."""
    lines = [f'{name}{{engine="{label}"}} {value}' for name, label, value in samples]
    text = "\n".join([*lines, 'vllm:num_requests_running_by_reason{reason="x"} 7', ""])
    metrics = Metrics.parse(text, 0.0)
    for name in NAMES:
        assert quickly(text.encode(), name) == metrics.by_engine(name)


@settings(deadline=None)
@given(st.text('ab{}"=,\\ \n#019.eE+-NaIfHELPTY_:\t', max_size=60) | st.text(max_size=40))
def test_garbage_is_a_value_error(text: str) -> None:
    """Text in another format is refused in one way, or read; nothing else happens."""
    with contextlib.suppress(ValueError):
        Metrics.parse(text, 0.0)


@pytest.mark.parametrize("line", [b"m{x", b"m{}", b"m abc"])
def test_a_sample_without_a_number(line: bytes) -> None:
    """Half a line is no figure."""
    with pytest.raises(ValueError, match="could not convert"):
        quickly(line, "m")
