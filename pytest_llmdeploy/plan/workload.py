"""What a workload asks of a deployment, in the words of the latency prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

from pytest_llmdeploy.plan.kv_cache import bytes_per_token
from pytest_llmdeploy.plan.latency import Analytical, Load, Prediction, Predictor, Work
from pytest_llmdeploy.plan.limits import max_model_len, max_num_batched_tokens, max_num_seqs
from pytest_llmdeploy.plan.memory import cache_width
from pytest_llmdeploy.plan.shape import ModelShape
from pytest_llmdeploy.plan.tensors import Attention
from pytest_llmdeploy.spec import Spec, Workload

if TYPE_CHECKING:
    from pytest_llmdeploy.plan.planner import Sized

# FP8 and FP4 products need hardware for them; older GPUs unpack the weights and multiply in BF16.
_LEAST_CAPABILITY = {"fp8": (8, 9), "fp4": (10, 0)}


def predictions(predictor: Predictor, spec: Spec, sized: Sized) -> Mapping[str, Prediction]:
    """The prediction for every workload; none for a device whose speed nobody declared."""
    gpu = spec.hardware.device.gpu
    if gpu is None or spec.parallel.prefill_context > 1:
        return {}
    return {
        workload.name: predictor.predict(work(sized, workload), gpu, load(spec, sized, workload))
        for workload in spec.workloads
    }


@cache
def default_predictor() -> Predictor:
    """Our own analytical model, with the parameters that are shipped."""
    return Analytical.shipped()


def load(spec: Spec, sized: Sized, workload: Workload, concurrency: float | None = None) -> Load:
    """What one data-parallel copy gets of `workload`; with `concurrency`, as a closed loop."""
    copies = spec.parallel.data
    if concurrency is None and workload.concurrency is not None:
        concurrency = workload.concurrency / copies
    length = max_model_len(spec, sized.shape)
    return Load(
        input_tokens=workload.mean_input,
        output_tokens=workload.mean_output,
        concurrency=concurrency,
        rate=workload.rate / copies if workload.rate and concurrency is None else None,
        max_num_seqs=max_num_seqs(spec),
        max_num_batched_tokens=max_num_batched_tokens(spec, length),
    )


def context(workload: Workload) -> float:
    """How many tokens a sequence has on average while it is being decoded."""
    return workload.mean_input + workload.mean_output / 2


def work(sized: Sized, workload: Workload) -> Work:
    """What a rank of the busiest stage moves and calculates."""
    spec, shape, sizes = sized.spec, sized.shape, sized.sizes
    parallel, gpu = spec.parallel, spec.hardware.device.gpu
    held = sized.expert_loads[0]
    experts = shape.experts if held is None else held
    sized_stages = (
        (stage, sizes.stage(stage, parallel.tensor, parallel.expert_tensor))
        for stage in sized.different_stages.values()
    )
    stage, size = max(sized_stages, key=lambda item: item[1])
    read = size.dense
    if stage.is_first and not (stage.is_last and shape.tied):
        read -= sizes.embedding(parallel.tensor).dense
    first, last = stage.layers or (0, -1)
    kinds = Counter(map(id, shape.layers[first : last + 1]))
    attention = [(sizes.kinds[kind].attention, count) for kind, count in kinds.items()]
    chosen = max(layer.experts_per_token for layer in sizes.kinds.values())
    # Each rank works for the tokens of all copies, each of its experts with its part of them.
    share = parallel.data / parallel.expert_size if parallel.expert else parallel.data
    active = size.dense_elements + chosen * share * size.expert_elements
    if stage.is_first and not shape.tied:
        active -= sizes.embedding(parallel.tensor).dense_elements
    return Work(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        expert=parallel.expert,
        layers=len(shape.layers),
        stage_layers=stage.depth,
        hidden=shape.hidden,
        weights_bytes=read,
        expert_bytes=size.expert,
        experts=experts,
        total_experts=shape.experts,
        experts_per_token=chosen,
        flops_per_token=2.0 * active,
        attention_flops=_attention_flops(attention, parallel.tensor),
        kv_bytes_per_token=_kv_read(
            attention, parallel.tensor, cache_width(spec, shape), context(workload)
        ),
        compute=_compute(shape, gpu.compute_capability if gpu else (0, 0)),
        cache="fp8" if spec.serve.kv_cache_dtype.startswith("fp8") else "bf16",
        kv_tokens=_pool(sized, workload),
        nodes=-(-parallel.tensor // spec.hardware.devices_per_node),
    )


def _attention_flops(layers: Iterable[tuple[Attention, int]], tensor: int) -> float:
    """Operations for a pair of tokens, scores and values, in so many layers on a rank."""
    return sum(
        count * 2 * kind.heads / tensor * (kind.head_size + (kind.value_size or kind.head_size))
        for kind, count in layers
    )


def _kv_read(
    layers: Iterable[tuple[Attention, int]], tensor: int, width: float, tokens: float
) -> int:
    """Bytes read for each token of a sequence: a layer with a window reads no further than it."""
    return round(
        sum(
            count
            * bytes_per_token(kind, tensor, width)
            * (min(1.0, kind.window / tokens) if kind.window else 1.0)
            for kind, count in layers
        )
    )


def _compute(shape: ModelShape, capability: tuple[int, int]) -> Literal["bf16", "fp8", "fp4"]:
    wanted = shape.quantization.compute if shape.quantization else "bf16"
    return wanted if capability >= _LEAST_CAPABILITY.get(wanted, (0, 0)) else "bf16"


def _pool(sized: Sized, workload: Workload) -> int | None:
    """Tokens that the KV cache of one copy holds, in sequences of this workload's length."""
    if sized.kv_cache is None:
        return None
    tokens = max(1, round(context(workload)))
    return sized.kv_cache.blocks // sized.kv_cache.blocks_per_sequence(tokens) * tokens
