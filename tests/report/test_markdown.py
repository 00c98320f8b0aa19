"""The report for a change request."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module

import pytest
from syrupy.assertion import SnapshotAssertion

from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.graph import deployment_graph
from pytest_llmdeploy.report import Context, Unchecked
from pytest_llmdeploy.report.files import FORMS
from pytest_llmdeploy.report.markdown import render
from tests.plan.deployments import made
from tests.report.rows import checklist, full_checklist, row
from tests.specs import REPOSITORY

LLAMA = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"
# What an engineer who reviews the deployment by hand writes down: a heading or an item, and what
# its lines say.
REVIEW = {
    "GPU count": r"\| Device count.*8 × H100-SXM-80GB.*PASS",
    "memory usage": r"\| Memory utilization, planned.*84\.5 %.*PASS",
    "interconnect": r"\| NVLink in TP group +\| nvlink +\| the machine with the devices",
    "prefill latency": r"\| TTFT in reach, steady.*≤ 500 ms.*54\.8 ms.*PASS",
    "decode latency": r"\| TPOT in reach, steady.*≤ 50 ms.*17\.41 ms.*PASS",
    "load balance": r"\| Memory balance +\| 5 % +\| the running server",
    "layer balance": r"\| Layer balance.*PASS",
    "throughput envelope": r"\| steady +\|.*13\.3 to 19\.9/s",
    "strategy rationale": r"TP 8 is predicted to serve the most of 28 strategies considered",
    "alternatives": r"\| 2 +\| TP 4 × PP 2 +\| 1\.99.*fewer requests/s",
    "model": r"\| Architecture +\| llama, dense, 80 layers",
    "sequence limit": r"\| max_model_len +\| 8,192 tokens",
    "dtype": r"\| dtype +\| float16",
    "memory budget": r"\| 0 +\| 16\.43 GiB \| 49\.18 GiB",
    "launch command": r"```sh\nvllm serve meta-llama/Meta-Llama-3-70B-Instruct \\\n  --dtype",
    "conclusion": r"## Conclusion and recommendations\n\n- ",
    "graph": r"```mermaid\nflowchart LR\n",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on the deployment of the published analysis, without a server."""
    path = tmp_path_factory.mktemp("llama") / "gate.md"
    options = [f"--deploy-report={path}", f"--deploy-spec={LLAMA}", "--deploy-plan-only", "-q"]
    found = pytest.main(
        ["-pno:cacheprovider", f"--rootdir={LLAMA.parent}", "-c/dev/null", *options]
    )
    assert found == pytest.ExitCode.OK
    return path.read_text()


@pytest.mark.parametrize("part", REVIEW)
def test_it_has_what_a_review_has(part: str, llama: str) -> None:
    """Nothing of a review by hand is missing; what needs a server is never shown as passed."""
    assert re.search(REVIEW[part], llama), llama


def test_what_was_not_checked_has_no_status(llama: str) -> None:
    """The rows of a plan are not those of a server."""
    _, _, rest = llama.partition("## Not checked in this run")
    unchecked, _, _ = rest.partition("\n## ")
    assert len(re.findall(r"^\| \w", unchecked, re.MULTILINE)) == 1 + 38
    assert not re.search("PASS|FAIL", unchecked)


def test_a_run(snapshot: SnapshotAssertion) -> None:
    """Traffic, every status, what to change and what is left open."""
    spec = made(workloads=[])
    found = plan(spec)
    context = Context(
        plan=found,
        unchecked=[Unchecked(item="KV capacity", requirement="8 × 512 tokens", phase="live")],
        launch="vllm serve org/model",
        graph=deployment_graph(spec, found),
    )
    shown = replace(full_checklist(), context=context, repairs=["all pass with x: 1 (was 2)"])
    assert render([shown]) == snapshot


def test_a_broken_spec() -> None:
    """It says why, and no more."""
    text = render([checklist(broken="a.yaml:1: version: is required")])
    assert text == (
        "# a: UNDECIDED\n\nThe file is not a valid spec:\n\n"
        "```text\na.yaml:1: version: is required\n```\n"
    )


@pytest.mark.parametrize(
    "hostile",
    ["a | b", "`x`", "<img src=x>", "[x](http://evil)", "*b*", "@team #1", "a\nb", "\x1b[31mred"],
)
def test_a_servers_words_are_words(hostile: str) -> None:
    """Whatever a row says, it stays one cell of one row."""
    text = render([checklist(rows=[row(Status.FAIL, result=hostile, hint=hostile)])])
    (line,) = (line for line in text.splitlines() if line.startswith("| Memory headroom"))
    assert line.count("|") == 5
    assert not re.search(r"[<`*@\x1b]|\]\(", line.replace("[^1-1]", ""))


def test_a_fence_in_a_fence() -> None:
    """A launch command can't end the block that it is in."""
    shown = replace(checklist(), context=Context(launch="vllm serve a --x='```'"))
    assert "````sh\nvllm serve a --x='```'\n````" in render([shown])


def test_a_large_deployment_stays_readable() -> None:
    """1,024 ranks are not drawn, and the page keeps far below what GitHub takes (1 MB)."""
    spec = made(
        model={"id": "meta-llama/Meta-Llama-3-8B-Instruct"},
        hardware={"device": "H100-SXM-80GB", "devices_per_node": 8, "nodes": 128},
        parallel={"tensor": 1, "data": 1024},
        workloads=[],
    )
    found = plan(spec)
    context = Context(plan=found, graph=deployment_graph(spec, found))
    text = render([replace(checklist(), context=context)])
    assert "Too many ranks to draw: 1024" in text
    assert len(text.encode()) < 50_000


def test_a_step_summary(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where GitHub names a file for it, the report is added to what is there."""
    summary = pytester.path / "summary.md"
    summary.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    arguments = (f"--deploy-spec={LLAMA}", "--deploy-plan-only", "-q")
    assert pytester.runpytest(*arguments, "--collect-only").ret == 0
    assert summary.read_text() == "what was there\n"
    assert pytester.runpytest(*arguments).ret == 0
    assert summary.read_text().startswith("what was there\n# llama3-70b-8xh100: PLAN PASSES\n")


def test_a_step_summary_that_can_not_be_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and the run is no success."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path))
    result = pytester.runpytest(f"--deploy-spec={LLAMA}", "--deploy-plan-only", "-q")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [f"ERROR: GITHUB_STEP_SUMMARY {pytester.path} cannot be written: *"]
    )


def test_every_form_has_a_writer() -> None:
    """The suffixes that the option takes."""
    modules = [import_module(f"pytest_llmdeploy.report.{name}") for name in FORMS.values()]
    assert all(callable(module.render) for module in modules)
