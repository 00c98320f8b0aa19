"""Starts vLLM's engine core in this process for one command line after the other, and prints what
KV cache it laid out: `python engine_cores.py CASES`, a line of JSON for each {name, argv}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
}


def laid_out(argv: list[str]) -> dict[str, Any]:
    """The figures of vLLM's own KV cache for these arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - after the environment
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415
    from vllm.v1.executor import Executor  # noqa: PLC0415

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)  # type: ignore[no-untyped-call]
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    executor = Executor.get_class(config)
    ranks = range(config.parallel_config.world_size)
    # One core for each rank; on its own, vLLM wants a NUMA node for each.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, ranks)) if ranks[1:] else "auto"
    core = EngineCore(vllm_config=config, executor_class=executor, log_stats=False)
    cache = config.cache_config
    try:
        return {
            "blocks": cache.num_gpu_blocks,
            "block_size": cache.block_size,
            "tokens": cache.kv_cache_size_tokens,
            "concurrency": cache.kv_cache_max_concurrency,
        }
    finally:
        core.shutdown()  # type: ignore[no-untyped-call]


def main() -> None:
    os.environ.update(ENVIRONMENT)
    for line in Path(sys.argv[1]).read_text().splitlines():
        case = json.loads(line)
        try:
            found = laid_out(case["argv"])
        except Exception as error:  # noqa: BLE001 - it is the answer
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        sys.stdout.write(f"RESULT {json.dumps({'name': case['name'], **found})}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
