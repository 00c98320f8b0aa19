"""VLLM on the CPU: what it refuses, and what it accepts and dies of at the first request."""

from __future__ import annotations

from pytest_llmdeploy.plan.rules.given import Broken, count, flag, variable
from pytest_llmdeploy.spec import Spec

_BIND = "VLLM_CPU_OMP_THREADS_BIND"


def thread_binding(spec: Spec) -> Broken:
    """One list of cores for each rank of the node."""
    text, parallel = variable(spec, _BIND), spec.parallel
    if not _is_cpu(spec) or text in {None, "auto", "nobind"}:
        return
    lists, nodes = str(text).count("|") + 1, max(1, count(spec, "nnodes") or 1)
    ranks = max(1, parallel.devices // nodes)
    is_short = lists < ranks if parallel.data > 1 else lists != ranks
    if is_short:
        message = f"{_BIND} has {lists} lists of cores for {ranks} ranks"
        yield f"serve.env.{_BIND}", message


def ray_on_cpu(spec: Spec) -> Broken:
    for name in ("distributed_executor_backend", "data_parallel_backend"):
        if _is_cpu(spec) and flag(spec, name) == "ray":
            yield f"serve.{name}", "Ray can't run workers on the CPU platform"


def eager_pipeline(spec: Spec) -> Broken:
    """Without a warm-up run there is no buffer for what stages hand on."""
    if _is_cpu(spec) and spec.parallel.pipeline > 1 and spec.serve.enforce_eager:
        message = f"PP {spec.parallel.pipeline} on cpu: with enforce_eager, the first request kills"
        yield "serve.enforce_eager", f"{message} the engine"


def experts_on_cpu(spec: Spec) -> Broken:
    """The kernel takes every expert to be here, and reads beyond its memory."""
    if _is_cpu(spec) and spec.parallel.expert and spec.parallel.expert_size > 1:
        message = "expert parallelism on cpu: the first request kills the engine (SIGSEGV)"
        yield "parallel.expert", message


def contexts_on_cpu(spec: Spec) -> Broken:
    dcp = spec.parallel.decode_context
    if _is_cpu(spec) and dcp > 1:
        message = f"DCP {dcp}: attention on cpu does not return what ranks must exchange"
        yield "parallel.decode_context", message


def prompts_on_cpu(spec: Spec) -> Broken:
    pcp = spec.parallel.prefill_context
    if _is_cpu(spec) and pcp > 1:
        message = f"PCP {pcp}: the model runner of the CPU platform does not split prompts"
        yield "parallel.prefill_context", message


def _is_cpu(spec: Spec) -> bool:
    return spec.hardware.device.platform == "cpu"


RULES = (
    (thread_binding, "OMPProcessManager"),
    (ray_on_cpu, "initialize_ray_cluster"),
)
LAYOUT_RULES = (
    (eager_pipeline, "sync_and_gather_intermediate_tensors"),
    (experts_on_cpu, "CPUUnquantizedExperts"),
    (contexts_on_cpu, "check_attention_cp_compatibility"),
    (prompts_on_cpu, "_validate_v1_model_runner"),
)
