"""How long a plan and a search take, beside aiconfigurator's own search of the same space."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.search import alternatives
from pytest_llmdeploy.spec import Spec

ROUNDS = 15
SPECS = 200
SECONDS = re.compile(r"All experiments completed in ([\d.]+) seconds")
SEARCH = [
    *("cli", "default", "--model", "meta-llama/Meta-Llama-3.1-70B", "--total-gpus", "8"),
    *("--system", "h100_sxm", "--backend", "vllm", "--isl", "1024", "--osl", "128"),
    *("--ttft", "500", "--tpot", "50"),
]
TEXT = """\
version: 1
model: {id: meta-llama/Meta-Llama-3-70B-Instruct}
hardware: {device: H100-SXM-80GB, devices_per_node: 8}
parallel: {tensor: 8}
serve: {max_model_len: 8192, max_num_seqs: 128}
workloads:
  - name: steady
    input_tokens: 1024
    output_tokens: 128
    rate: 8/s
    require: {ttft: {p99: 500ms}, tpot: {p99: 50ms}}
require:
  devices: 8
  memory: {max_utilization: 95%, min_headroom: 1GiB}
  kv_cache: {concurrent_sequences: 64, tokens_per_sequence: 8192}
  balance: {layers: 0%}
"""


def rows() -> Iterator[tuple[str, str, str]]:
    """What was timed, the median here, and what was aimed at."""
    eight = _spec("meta-llama/Meta-Llama-3.1-70B", nodes=1)
    many = _spec("meta-llama/Meta-Llama-3.1-405B", nodes=128)
    yield "one plan, 70B on 8 GPUs", f"{_median(lambda: plan(eight)) * 1e3:.2f} ms", "1 ms"
    search = _median(lambda: alternatives(eight))
    yield f"search, {len(alternatives(eight))} strategies on 8", f"{search * 1e3:.0f} ms", "50 ms"
    wide = _median(lambda: alternatives(many), rounds=3)
    yield f"search, {len(alternatives(many)):,} on 1,024", f"{wide:.2f} s", "1 s"
    yield f"pytest, {SPECS} specs with all plan rows", f"{_pytest():.1f} s", "15 s"
    theirs = _aiconfigurator()
    if theirs is not None:
        ratio = theirs / search
        yield "aiconfigurator, its search on 8", f"{theirs:.1f} s", f"{ratio:,.0f} × ours"


def _spec(model: str, *, nodes: int) -> Spec:
    limits = {"ttft": {"p99": "500ms"}, "tpot": {"p99": "50ms"}}
    workload: dict[str, Any] = {"input_tokens": 1024, "output_tokens": 128, "rate": "1/s"}
    return Spec.model_validate(
        {
            "version": 1,
            "model": {"id": model},
            "hardware": {"device": "H100-SXM-80GB", "devices_per_node": 8, "nodes": nodes},
            "parallel": {"tensor": 8},
            "serve": {"max_model_len": 8192},
            "workloads": [{"name": "steady", **workload, "require": limits}],
        }
    )


def _median(timed: Callable[[], object], rounds: int = ROUNDS) -> float:
    timed()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        timed()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _pytest() -> float:
    """A whole process, with its start."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(SPECS):
            (Path(folder) / f"s{index}.yaml").write_text(TEXT)
        command = [sys.executable, "-m", "pytest", "-q", "--deploy-spec", "*.yaml"]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--deploy-plan-only", "--no-summary"],
            cwd=folder,
            capture_output=True,
            check=True,
        )
        return time.perf_counter() - began


def _aiconfigurator() -> float | None:
    """The seconds that its command line says its search took; None where it is not installed."""
    script = Path(sys.executable).with_name("aiconfigurator")
    if not script.exists():
        return None
    done = subprocess.run([script, *SEARCH], capture_output=True, text=True, check=False)
    found = SECONDS.search(done.stdout + done.stderr)
    return float(found[1]) if found else None
