"""What holds of all rules together, for any spec: they are total, and quick."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.facts import vllm_flags
from pytest_llmdeploy.plan.rules import broken_rules, layout_rules
from pytest_llmdeploy.plan.shape import (
    ModelShape,
    shape_from_config,
    shape_of,
)
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.spec.model import Serve
from tests.plan.deployments import CONFIG, made
from tests.plan.test_rules import BINDING, CPU, EXPERTS, FP8, LATENT, TOWER, WINDOW, Parts

SHAPES = [shape_from_config(config) for config in (CONFIG, EXPERTS, LATENT, WINDOW, TOWER)]
SHAPES += [
    shape_from_config({**config, "quantization_config": FP8}) for config in (LATENT, EXPERTS)
]
STRATEGIES = st.builds(
    Parallel,
    tensor=st.integers(1, 64),
    pipeline=st.integers(1, 16),
    data=st.integers(1, 8),
    expert=st.booleans(),
    prefill_context=st.integers(1, 2),
    decode_context=st.integers(1, 8),
    layers=st.none() | st.lists(st.integers(-2, 9), max_size=4).map(tuple),
)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=True, allow_infinity=True)
ANYTHING = NUMBERS | st.text(max_size=5) | st.none() | st.lists(NUMBERS, max_size=2)
# What rules read, and vLLM's parser may find anything in.
READ = [
    name
    for name, flag in vllm_flags().items()
    if flag.kind == "value"
    and not flag.choices
    and name not in Serve.model_fields
    and name
    not in {"model", "dtype", "quantization", "revision", "host", "port", "api_key", "hf_token"}
]
FLAGS = st.dictionaries(st.sampled_from(READ), ANYTHING, max_size=5)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([None, *SHAPES]),
    STRATEGIES,
    FLAGS,
    st.sampled_from([{"device": "H100-SXM-80GB", "devices_per_node": 8}, CPU]),
    st.dictionaries(
        st.sampled_from([BINDING, "VLLM_PP_LAYER_PARTITION", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"]),
        st.text(max_size=6) | st.just({"from_env": "X"}),
    ),
)
def test_rules_are_total(
    shape: ModelShape | None,
    strategy: Parallel,
    flags: Parts,
    hardware: Parts,
    env: Parts,
) -> None:
    """No valid spec makes a rule raise, and every message is a line that names its key."""
    serve = {"enable_eplb": True, **flags, "env": env}
    try:
        spec = Spec.model_validate(
            {"version": 1, "model": {"id": "m"}, "hardware": hardware, "serve": serve}
        ).model_copy(update={"parallel": strategy})
    except ValueError:
        return
    for violation in broken_rules(spec, shape):
        assert violation.key
        assert violation.message
        assert "\n" not in violation.message or any("\n" in str(text) for text in env.values())


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SHAPES), STRATEGIES)
def test_layout_rules_are_the_rules_of_the_strategy(shape: ModelShape, strategy: Parallel) -> None:
    """They say of another strategy what all rules would say of it, beyond what it shares."""
    spec = made(model={"id": "m"})
    changed = spec.model_copy(update={"parallel": strategy})
    every, some = list(broken_rules(changed, shape)), list(layout_rules(spec, shape, strategy))
    assert [violation for violation in every if violation in some] == some
    devices = {"devices", "node_devices", "node_copies"}
    same = {violation.rule for violation in broken_rules(spec, shape)}
    assert {v.rule for v in every if v not in some} <= devices | same


def test_layout_rules_are_quick() -> None:
    """A search asks thousands of times: a strategy takes them less than 200 µs even here."""
    spec, shape = made(), shape_of(made())
    strategies = [Parallel(tensor=1 << power, pipeline=2) for power in range(4)] * 50
    start = time.process_time()
    for strategy in strategies:
        assert not any(layout_rules(spec, shape, strategy))
    assert (time.process_time() - start) / len(strategies) < 200e-6
