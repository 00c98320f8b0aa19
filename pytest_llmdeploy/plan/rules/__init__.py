"""The rules that a deployment must keep to start at all, each as vLLM 0.32 enforces it.

Every rule yields the key and the message of each way in which it is broken; beside it stands the
function or class of vLLM that refuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmdeploy.plan.model import Violation
from pytest_llmdeploy.plan.rules import (
    contexts,
    cpu,
    devices,
    experts,
    flags,
    hardware,
    lengths,
    parallel,
    quantization,
)
from pytest_llmdeploy.plan.rules.given import ShapeRule, SpecRule
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.spec import Parallel, Spec

SPEC_RULES: tuple[tuple[SpecRule, str], ...] = (
    *devices.RULES,
    *flags.RULES,
    *lengths.RULES,
    *hardware.RULES,
    *quantization.RULES,
    *experts.RULES,
    *cpu.RULES,
)
"""Rules that ask nothing of the model."""

SPEC_LAYOUT_RULES: tuple[tuple[SpecRule, str], ...] = (*contexts.RULES, *cpu.LAYOUT_RULES)
SHAPE_LAYOUT_RULES: tuple[tuple[ShapeRule, str], ...] = (
    *parallel.RULES,
    *experts.LAYOUT_RULES,
    *contexts.SHAPE_RULES,
    *quantization.LAYOUT_RULES,
)
"""Rules of the strategy: on one model and one hardware, they differ by `parallel` alone."""

SHAPE_RULES: tuple[tuple[ShapeRule, str], ...] = (
    *lengths.SHAPE_RULES,
    *hardware.SHAPE_RULES,
    *quantization.SHAPE_RULES,
    *experts.SHAPE_RULES,
)

RULES = (*SPEC_RULES, *SPEC_LAYOUT_RULES, *SHAPE_LAYOUT_RULES, *SHAPE_RULES)


def broken_rules(spec: Spec, shape: ModelShape | None) -> Iterator[Violation]:
    """Every rule that the spec breaks; without a shape, of those that need none."""
    yield from _of_spec(spec, SPEC_RULES)
    yield from _of_spec(spec, SPEC_LAYOUT_RULES)
    if shape is not None:
        yield from _of_shape(spec, shape, SHAPE_LAYOUT_RULES)
        yield from _of_shape(spec, shape, SHAPE_RULES)


def layout_rules(spec: Spec, shape: ModelShape, parallel: Parallel) -> Iterator[Violation]:
    """The rules that `spec` would break with another strategy, of those that only it decides."""
    changed = spec.model_copy(update={"parallel": parallel})
    yield from _of_spec(changed, SPEC_LAYOUT_RULES)
    yield from _of_shape(changed, shape, SHAPE_LAYOUT_RULES)


def _of_spec(spec: Spec, rules: tuple[tuple[SpecRule, str], ...]) -> Iterator[Violation]:
    for rule, source in rules:
        for key, message in rule(spec):
            yield Violation(rule.__name__, key, message, source)


def _of_shape(
    spec: Spec, shape: ModelShape, rules: tuple[tuple[ShapeRule, str], ...]
) -> Iterator[Violation]:
    for rule, source in rules:
        for key, message in rule(spec, shape):
            yield Violation(rule.__name__, key, message, source)
