"""The figures of docs/concepts/case-llama3-70b.md are the plan's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_llmdeploy.facts import gpus
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.plan.latency import Estimate, Load
from pytest_llmdeploy.plan.planner import Sized
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.plan.shape import shape_of
from pytest_llmdeploy.plan.workload import default_predictor, work
from pytest_llmdeploy.spec import Spec, load_spec
from tests.specs import REPOSITORY

SPEC = load_spec(REPOSITORY / "specs" / "llama3-70b-8xh100.yaml")
TEXT = " ".join((REPOSITORY / "docs" / "concepts" / "case-llama3-70b.md").read_text().split())
GB = 1e9


def memory(found: Plan) -> Iterator[str]:
    """Weights, KV cache, what is needed, what is taken, and what is left."""
    rank, total = found.ranks[0], SPEC.hardware.device.total_bytes or 0
    weights, used = rank.weights_bytes or 0, rank.used_bytes or 0
    per_token = rank.kv_bytes_per_token or 1
    low, high = rank.activation_bytes or (0, 0)
    wanted = 128 * 8192 * per_token
    yield f"{weights / GB:.2f} GB ({weights / 2**30:.2f} GiB)"
    yield f"takes {per_token:,} B on each GPU, so they take {wanted / GB:.2f} GB"
    yield f"8.0 GB hold {8 * GB / per_token / 8192:.1f} sequences"
    yield f"{low / GB:.2f} to {high / GB:.2f} GB"
    needed = (low + weights + wanted) / GB, (high + weights + wanted) / GB
    yield f"{needed[0]:.0f} to {needed[1]:.0f} GB"
    yield f"`gpu_memory_utilization` of {found.needed_utilization:.3f}"
    yield f"{used / GB:.2f} GB, {used / total:.1%}".replace("%", " %")
    yield f"leaves {(rank.headroom_bytes or 0) / GB:.2f} GB of the GPU"
    yield f"{(0.85 * total - used) / GB:.2f} GB under a limit of 85 %"


def speed(found: Plan) -> Iterator[str]:
    """Floor and predictions."""
    asked = work(Sized.of(SPEC, shape_of(SPEC)), SPEC.workload("steady"))
    gpu = gpus()["H100-SXM-80GB"]
    floor = asked.weights_bytes / gpu.hbm_bytes_per_s * 1000
    yield f"reading {asked.weights_bytes / GB:.2f} GB of weights takes {floor:.2f} ms"
    limits = {"max_num_seqs": 128, "max_num_batched_tokens": 8192}
    one = Load(input_tokens=1024, output_tokens=128, concurrency=1, **limits)
    long = Load(input_tokens=8191, output_tokens=2, concurrency=1, **limits)
    yield f"{band(default_predictor().predict(asked, gpu, one).tpot_ms, 1)} for one sequence"
    steady = found.prediction["steady"]
    yield f"{band(steady.tpot_ms, 1)} at 8 requests/s"
    yield f"for 1,024 tokens {band(steady.ttft_ms, 0)} under load"
    alone = default_predictor().predict(asked, gpu, long).ttft_ms
    yield f"for 8,191 tokens alone {band(alone, 0)}"
    rate = steady.capacity
    yield f"{rate.value:.1f}/s ({rate.low:.1f} to {rate.high:.1f})"


def band(estimate: Estimate, digits: int) -> str:
    value, low, high = (
        f"{figure:.{digits}f}" for figure in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ms ({low} to {high})"


def strategies(found: Plan) -> Iterator[str]:
    """The alternatives that the analysis names, and two that it does not."""
    split, wide = named(found, "TP 4 × PP 2"), named(found, "TP 2 × PP 4")
    levelled = next(
        one for one in found.alternatives if one.parallel.layers and one.parallel.pipeline == 4
    )
    yield f"{split.regret or 0:.2%} fewer requests per second".replace("%", " %")
    wide_lost, levelled_lost = round((wide.regret or 0) * 100), round((levelled.regret or 0) * 100)
    yield f"{wide_lost} % fewer, {levelled_lost} % with an even split"
    alone = named(found, "TP 1 × PP 8").prediction
    assert alone is not None
    yield f"{alone.tpot_ms.value:.1f} ms per token for a single request"
    for name in ("TP 4 × PP 1 × DP 2", "TP 2 × PP 2 × DP 2"):
        assert "holds 106 of 128" in named(found, name).reasons[-1]
    yield f"best of {sum(one.feasible for one in found.alternatives)} that can work"


def named(found: Plan, name: str) -> Alternative:
    """The strategy of that name with vLLM's own split of the layers."""
    return next(
        one
        for one in found.alternatives
        if str(one.parallel).startswith(name) and one.parallel.layers is None
    )


@pytest.mark.parametrize("figures", [memory, speed, strategies], ids=lambda f: f.__name__)
def test_the_figures_are_the_plans(figures: object) -> None:
    """What the document says is what the plan calculates."""
    spec: Spec = SPEC
    assert callable(figures)
    for text in figures(plan(spec)):
        assert text in TEXT


def test_the_declared_strategy_is_the_best() -> None:
    """Of those that can work, the published one is predicted to do the most."""
    assert plan(SPEC).alternatives[0].declared
