"""How fast a strategy would be: TTFT, TPOT and capacity, by an analytical model of vLLM's steps.

On a rank of a pipeline stage, a step of some sequences and maybe a chunk of a prompt takes

    device = overlap(weights / HBM, tokens × operations / peak)          matrix products
           + sequences × context × KV / HBM + query-context pairs × operations / peak
           + twice a layer the sum over the tensor-parallel group        latency + tokens / link
           + a layer's kernels × their latency                           however little they do
    step   = device + host

where overlap(a, b) is the p-norm of the two, a little more than the longer of them. TPOT is the
step of the running sequences, plus what the prompts of the others add while one is decoded. The
shares of peak that kernels reach are published measurements, corrected by a fit to measured
deployments; facts/latency.json has them, says what they rest on and for what they hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llmdeploy.facts import Gpu
from pytest_llmdeploy.plan.latency.parameters import DEFAULT, Engine, Kernels, Product, Version
from pytest_llmdeploy.plan.latency.records import Compute, Work

FUSED_FROM = 9  # compute capability (vllm/config/vllm.py: enable_allreduce_rms_fusion)


@dataclass(frozen=True, slots=True)
class Step:
    """The cost in ms of one step of the busiest stage, as a function of what is in it."""

    fixed: float
    mixed: float
    weights: float
    expert: float
    experts: int
    missed: float
    copies: int
    token: float
    link: float
    cache: float
    attention: float
    overlap: float
    host: float
    sequence: float
    overlapped: bool

    def ms(self, sequences: float, context: float, chunk: float = 0, keys: float = 0) -> float:
        """Of decoding `sequences` of that context together with `chunk` tokens of prompts, each of
        which attends to so many `keys` on average.
        """
        tokens = sequences + chunk
        read, calculated = self.weights, tokens * self.token
        if self.experts:
            read += self.expert * self.experts * (1 - self.missed ** (tokens * self.copies))
        device = (
            self.fixed
            + _norm(read, calculated, self.overlap)
            + tokens * self.link
            + sequences * context * self.cache
        )
        if chunk:
            device += self.mixed + chunk * keys * self.attention
        host = self.host + sequences * self.sequence
        return max(device, host) if self.overlapped else device + host


def step_of(
    work: Work, gpu: Gpu, kernels: Kernels, engine: Engine, version: Version = DEFAULT
) -> Step:
    """The step of that work on that GPU."""
    product, peak = product_of(work.compute, gpu, kernels)
    attention = kernels.attention[work.cache if work.cache in kernels.attention else "bf16"]
    collective, rate = kernels.collective, gpu.link_bytes_per_s
    if work.nodes > 1:
        collective, rate = engine.network, engine.network_bytes_per_s
    sums, moved = _collectives(work)
    handover = engine.stage_us if work.pipeline > 1 else 0.0
    layer = engine.products * product.us + attention.us + engine.layer_us
    if version.fused and work.tensor > 1 and kernels.capability >= FUSED_FROM:
        layer -= engine.norms_us
    fixed = work.stage_layers * layer + sums * (collective.us + engine.skew_us) + handover
    hbm = gpu.hbm_bytes_per_s / 1e3
    return Step(
        fixed=fixed / 1e3,
        mixed=engine.mixed_us / 1e3,
        weights=work.weights_bytes / (hbm * product.read),
        expert=work.expert_bytes / (hbm * product.read),
        experts=work.experts if work.expert_bytes else 0,
        missed=1 - work.experts_per_token / max(1, work.total_experts),
        copies=work.data,
        token=1e3 * work.flops_per_token / (peak * product.compute),
        link=1e3 * moved / (rate * collective.rate),
        cache=work.kv_bytes_per_token / (hbm * attention.read),
        attention=1e3 * work.attention_flops / (gpu.bf16_flops * attention.compute),
        overlap=engine.overlap,
        host=engine.host_us / 1e3,
        sequence=engine.sequence_us / 1e3,
        overlapped=version.overlapped,
    )


def product_of(compute: Compute, gpu: Gpu, kernels: Kernels) -> tuple[Product, float]:
    """The matrix product and its peak rate; where a GPU lacks the precision, weights are unpacked
    and multiplied in bf16.
    """
    if compute == "bf16" or compute not in kernels.products or gpu.fp8_flops is None:
        return kernels.products["bf16"], gpu.bf16_flops
    return kernels.products[compute], gpu.fp8_flops * (2 if compute == "fp4" else 1)


def _collectives(work: Work) -> tuple[int, float]:
    """How many a step has, and the bytes that each rank sends for a token, all together."""
    hidden = 2 * work.hidden  # activations are in 16 bits
    sums = 2 * work.stage_layers if work.tensor > 1 else 0
    moved = sums * 2 * (work.tensor - 1) / work.tensor * hidden
    if work.total_experts and work.data > 1:  # tokens are gathered before, scattered after
        sums += 2 * work.stage_layers
        moved += 2 * work.stage_layers * (work.data - 1) * hidden
    if work.pipeline > 1:  # hidden state and residual, each rank its part
        moved += 2 * hidden / work.tensor
    return sums, moved


def _norm(one: float, other: float, power: float) -> float:
    longer, shorter = (one, other) if one > other else (other, one)
    if not shorter:
        return longer
    return longer * math.pow(1 + math.pow(shorter / longer, power), 1 / power)
