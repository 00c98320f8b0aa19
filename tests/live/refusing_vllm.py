"""vLLM itself, asked what it refuses: its parser, its configuration, its models without weights.

Run as a module, in a process that has nothing else to do. Questions come in by standard input, each
with a name, a command line, an environment and whether it is for the CPU; answers go out by
standard output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import MagicMock

from pytest_llmdeploy.plan.rules.quantization import ONLINE

BINDING = "VLLM_CPU_OMP_THREADS_BIND"


def main() -> None:
    """Answers the questions of standard input."""
    from vllm.model_executor.layers.quantization import fp8  # noqa: PLC0415
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (  # noqa: PLC0415
        compressed_tensors_wNa16,
    )
    from vllm.model_executor.models import ModelRegistry  # noqa: PLC0415

    kernel = MagicMock()
    kernel.return_value.__name__ = "kernel"
    for module in (fp8, compressed_tensors_wNa16):
        # Kernels for quantized weights are for GPUs, or for CPUs with AMX.
        name = "init_fp8_linear_kernel" if module is fp8 else "choose_mp_linear_kernel"
        setattr(module, name, kernel)
    asked = json.load(sys.stdin)
    for name in asked["architectures"]:
        # Otherwise vLLM starts a process for each architecture that it has not seen before.
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    found = {question["name"]: _refusal(**question) for question in asked["questions"]}
    sys.stdout.write("\n" + json.dumps({"refusals": found, "tables": _tables()}))


def _tables() -> Mapping[str, Any]:
    from vllm.model_executor.layers.quantization import (  # noqa: PLC0415
        QUANTIZATION_METHODS,
        get_quantization_config,
    )
    from vllm.v1.attention.backend import AttentionImpl, MLAAttentionImpl  # noqa: PLC0415
    from vllm.v1.attention.backends.mla.flashmla import FlashMLABackend  # noqa: PLC0415
    from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend  # noqa: PLC0415

    backends = (FlashMLABackend, TritonMLABackend)
    quantization = {}
    for name in set(QUANTIZATION_METHODS) - {*ONLINE}:
        method = get_quantization_config(name)
        # Some are methods of an object, which they ask for nothing.
        blank = object.__new__(method)
        dtypes = {str(dtype).removeprefix("torch.") for dtype in blank.get_supported_act_dtypes()}
        found = sorted(dtypes - {"float8_e4m3fn"})
        quantization[name] = [blank.get_min_capability(), found]
    return {
        "quantization": quantization,
        "latent": sorted({name for each in backends for name in each.supported_kv_cache_dtypes}),
        "pcp": [AttentionImpl.supports_pcp, MLAAttentionImpl.supports_pcp],
    }


def _refusal(name: str, argv: Sequence[str], environment: Mapping[str, str], on_cpu: bool) -> str:
    """What is raised, with the functions of vLLM that it came through; empty when nothing is."""
    before, said = dict(os.environ), io.StringIO()
    os.environ.update(environment)
    try:
        with contextlib.redirect_stderr(said):
            config = _configuration(argv)
            _check_process(config, on_cpu)
            _check_model(config, on_cpu)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever vLLM dies of
        frames = (entry[0] for entry in traceback.walk_tb(error.__traceback__))
        places = " > ".join(frame.f_code.co_qualname for frame in frames)
        return f"{name}: {said.getvalue()[-2000:]} {error!r} in {places}"
    finally:
        os.environ.clear()
        os.environ.update(before)
    return ""


def _configuration(argv: Sequence[str]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils import argparse_utils  # noqa: PLC0415

    parser: Any = argparse_utils.FlexibleArgumentParser
    arguments = make_arg_parser(parser()).parse_args([*argv])
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    config.validate_block_size()
    return config


def _check_process(config: Any, on_cpu: bool) -> None:
    """What a worker of the CPU platform asks before it has a model."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager  # noqa: PLC0415
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # noqa: PLC0415
    from vllm.v1.worker.utils import select_common_block_size  # noqa: PLC0415

    _ = config.parallel_config.local_world_size
    if BINDING in os.environ:
        OMPProcessManager(config)
    if on_cpu:
        select_common_block_size(config.cache_config.block_size, [CPUAttentionBackend])


def _check_model(config: Any, on_cpu: bool) -> None:
    """Makes each stage of the model, without its weights, and asks for its KV cache."""
    import torch  # noqa: PLC0415
    from vllm.config import set_current_vllm_config  # noqa: PLC0415
    from vllm.model_executor.model_loader.utils import get_model_architecture  # noqa: PLC0415
    from vllm.v1.worker.cp_utils import check_attention_cp_compatibility  # noqa: PLC0415
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec  # noqa: PLC0415

    parallel = config.parallel_config
    # Which experts a rank holds is asked of a tensor.
    device = "cpu" if parallel.enable_expert_parallel else "meta"
    for stage in range(parallel.pipeline_parallel_size):
        _pretend_to_be_first(parallel, stage)
        config.compilation_config.static_forward_context.clear()
        with set_current_vllm_config(config), torch.device(device):
            get_model_architecture(config.model_config)[0](vllm_config=config, prefix="")
            if on_cpu:
                check_attention_cp_compatibility(config)
            for spec in get_kv_cache_spec(config).values():
                spec.max_memory_usage_bytes(config)


class _Group:
    """Stands for the process group of one of so many ranks."""

    rank = local_rank = 0

    def __init__(self, size: int, rank: int) -> None:
        self.world_size, self.rank_in_group = size, rank
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.device_group = self.cpu_group = self

    def size(self) -> int:
        return self.world_size


def _pretend_to_be_first(parallel: Any, stage: int) -> None:
    """The process groups of the first rank of a stage."""
    from vllm.distributed import parallel_state  # noqa: PLC0415

    tensor, copies = parallel.tensor_parallel_size, parallel.data_parallel_size
    prompt = parallel.prefill_context_parallel_size
    sizes = {
        "_TP": tensor,
        "_PP": parallel.pipeline_parallel_size,
        "_DP": copies,
        "_PCP": prompt,
        "_DCP": parallel.decode_context_parallel_size,
        "_EP": copies * prompt * tensor,
        "_WORLD": 1,
    }
    for name, size in sizes.items():
        setattr(parallel_state, name, _Group(size, stage if name == "_PP" else 0))


if __name__ == "__main__":
    main()
