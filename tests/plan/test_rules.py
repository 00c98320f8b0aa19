"""The rules that vLLM enforces: each one broken once, and what the plan says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.rules import RULES
from pytest_llmdeploy.spec import Spec
from tests.plan.deployments import CONFIG, made, tiny, with_config

WORKLOAD = {"name": "long", "input_tokens": 8000, "output_tokens": 193, "concurrency": 1}

# Rule, what breaks it in the spec, what breaks it in the model.
BROKEN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "devices": ("devices", {"parallel": {"tensor": 8, "pipeline": 2}}, {}),
    "attention_heads": ("attention_heads", {"parallel": {"tensor": 3}}, {}),
    "kv_heads": ("kv_heads", {"parallel": {"tensor": 8}}, {"num_key_value_heads": 3}),
    "mlp_width": ("mlp_width", {"parallel": {"tensor": 8}}, {"intermediate_size": 508}),
    "vocabulary": ("vocabulary", {"parallel": {"tensor": 5}}, {}),
    "stages-more-than-layers": ("stages", {"parallel": {"tensor": 1, "pipeline": 8}},
                                {"num_hidden_layers": 4}),
    "stages-wrong-sum": ("stages", {"parallel": {"tensor": 4, "pipeline": 2, "layers": [4, 3]}},
                         {}),
    "stages-wrong-length": ("stages", {"parallel": {"tensor": 8, "layers": [4, 4]}}, {}),
    "stages-negative": ("stages", {"parallel": {"tensor": 4, "pipeline": 2, "layers": [-1, 9]}},
                        {}),
    "dense_experts": ("dense_experts", {"parallel": {"expert": True}}, {}),
    "decode_context-tp": ("decode_context", {"parallel": {"tensor": 8, "decode_context": 3}}, {}),
    "decode_context-pcp": (
        "decode_context",
        {"parallel": {"tensor": 4, "prefill_context": 2, "decode_context": 4}},
        {"num_key_value_heads": 1},
    ),
    "decode_context_heads-no-copies": (
        "decode_context_heads", {"parallel": {"tensor": 8, "decode_context": 2}}, {},
    ),
    "decode_context_heads-query": (
        "decode_context_heads",
        {"parallel": {"tensor": 8, "decode_context": 4}},
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16},
    ),
    "positions": ("positions", {"serve": {"max_model_len": 4097}}, {}),
    "batched_tokens-sequences": (
        "batched_tokens", {"serve": {"max_num_batched_tokens": 64, "max_num_seqs": 65}}, {},
    ),
    "batched_tokens-unchunked": (
        "batched_tokens",
        {"serve": {"max_num_batched_tokens": 2048, "enable_chunked_prefill": False}},
        {},
    ),
    "request_lengths": ("request_lengths", {"workloads": [{**WORKLOAD, "input_tokens": 4000}]}, {}),
}  # fmt: skip


def broken(path: Path, spec: dict[str, Any], config: dict[str, Any]) -> Spec:
    """The small model on 8 GPUs, with something wrong."""
    return with_config(path / "config.json", {**CONFIG, **config}, **spec)


@pytest.mark.parametrize(("rule", "spec", "config"), BROKEN.values(), ids=BROKEN)
def test_broken_rule(
    rule: str,
    spec: dict[str, Any],
    config: dict[str, Any],
    tmp_path: Path,
    snapshot: SnapshotAssertion,
) -> None:
    """The violation says what is wrong at which key, and which function of vLLM refuses it."""
    found = plan(broken(tmp_path, spec, config)).violations
    assert [f"{v.key}: {v}" for v in found if v.rule == rule] == snapshot


@pytest.mark.parametrize(
    ("rule", "spec"),
    [
        ("weights_fit", made(parallel={"tensor": 1})),
        ("kv_cache_fits", tiny(serve={"max_model_len": 2048, "kv_cache_memory_bytes": "2MiB"})),
    ],
    ids=["weights_fit", "kv_cache_fits"],
)
def test_what_does_not_fit(rule: str, spec: Spec, snapshot: SnapshotAssertion) -> None:
    """Memory that can't suffice is a violation too, with the bytes that are missing."""
    found = plan(spec)
    assert [v.rule for v in found.violations] == [rule]
    assert found.refusal == snapshot


def test_every_rule_is_broken_here() -> None:
    """No rule is without a test that breaks it."""
    assert {rule for rule, _, _ in BROKEN.values()} == {"devices"} | {
        rule.__name__ for rule, _ in RULES
    }


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"parallel": {"tensor": 4, "pipeline": 2, "layers": [3, 5]}},
        {"parallel": {"tensor": 8, "prefill_context": 1, "data": 1}},
        {"serve": {"max_model_len": 8192, "env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}}},
        {"serve": {"max_num_batched_tokens": 512, "max_num_seqs": None}},
        {"workloads": [{**WORKLOAD, "input_tokens": 3903}]},
    ],
    ids=["plain", "layers", "one-copy", "long", "default-sequences", "longest-request"],
)
def test_what_is_allowed(spec: dict[str, Any], tmp_path: Path) -> None:
    """What vLLM accepts is not refused, right up to the limit."""
    found = plan(broken(tmp_path, spec, {}))
    assert found.refusal == ""
    assert found.is_feasible


def test_decode_context_is_allowed_among_copies(tmp_path: Path) -> None:
    """DCP shares out the copies that TP beyond the KV heads makes."""
    parallel = {"tensor": 8, "decode_context": 4}
    spec = broken(tmp_path, {"parallel": parallel}, {"num_key_value_heads": 2})
    assert plan(spec).refusal == ""


def test_every_violation_is_listed() -> None:
    """One fault does not hide another."""
    found = plan(made(parallel={"tensor": 3, "expert": True}, serve={"max_model_len": 9000}))
    rules = {violation.rule for violation in found.violations}
    assert rules >= {"attention_heads", "kv_heads", "mlp_width", "dense_experts", "positions"}
