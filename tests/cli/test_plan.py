"""`llmdeploy plan`: the page, the JSON, the graph and the patch, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llmdeploy.cli import main
from pytest_llmdeploy.cli.page import plan_page
from pytest_llmdeploy.cli.patch import patch, plain, repair_text
from pytest_llmdeploy.plan import Plan, plan
from pytest_llmdeploy.plan.latency import Estimate, Prediction
from pytest_llmdeploy.plan.repair import Change, Impossible, Repair, Repairs
from pytest_llmdeploy.plan.search import Alternative
from pytest_llmdeploy.report.plan_tables import strategy
from pytest_llmdeploy.serving.command import launch_text
from pytest_llmdeploy.spec import Parallel, Spec
from pytest_llmdeploy.units import Bytes, Duration, Fraction, Rate
from tests.plan.deployments import LLAMA_70B, made
from tests.specs import REPOSITORY, STEADY, write_spec

SPECS = sorted((REPOSITORY / "specs").glob("*.yaml"))
LLAMA = REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"


def llama(folder: Path, **parallel: Any) -> Path:
    """The 8-GPU deployment with another strategy, as a file."""
    path = folder / "llama.yaml"
    data = {**LLAMA_70B, "parallel": parallel}
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_example_has_a_page(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is feasible, fits into 80 columns, and names what a reader looks for."""
    assert main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{path.stem}: feasible\n")
    assert max(map(len, text.splitlines())) <= 80
    titles = [line for line in text.splitlines() if line and line[0] != " "][3:]
    wanted = [
        "Layout",
        "Memory of a device, by stage",
        "KV cache",
        "Alternatives",
        "Launch command",
    ]
    assert [title for title in titles if title != "Prediction"] == wanted
    assert "  vllm serve " in text


def test_not_feasible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The violations come first, and the exit code says so."""
    assert main(["plan", str(llama(tmp_path, tensor=3))]) == 1
    text = capsys.readouterr().out
    assert text.startswith("llama: NOT FEASIBLE\n")
    assert "\nViolations\n  - TP 3: 64 attention heads are not divisible by 3" in text
    assert "Memory of a device" not in text


def test_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that nobody knows is not called feasible."""
    path = write_spec(tmp_path / "a.yaml", model={"id": "nobody/knows"})
    assert main(["plan", str(path)]) == 1
    assert capsys.readouterr().out.startswith("a: not known\nnobody/knows\n")


@pytest.mark.parametrize("form", [[], ["--json"], ["--repair"], ["--graph", "dot"]])
def test_not_a_spec(form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, line and key on stderr, nothing on stdout, exit code 2."""
    path = write_spec(tmp_path / "a.yaml", parallel={"tensr": 2})
    assert main(["plan", str(path), *form]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"llmdeploy plan: {path}:")
    assert "parallel.tensr: unknown key: did you mean 'tensor'?" in err
    assert main(["plan", str(tmp_path / "none.yaml"), *form]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The plan as in the report, its alternatives, and the arguments of vLLM."""
    assert main(["plan", str(LLAMA), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["feasible"]) == ("llama3-70b-8xh100", True)
    assert [rank["rank"] for rank in found["plan"]["ranks"]] == list(range(8))
    declared = [entry for entry in found["plan"]["alternatives"] if entry["declared"]]
    assert [entry["parallel"]["tensor"] for entry in declared] == [8]
    assert found["vllm"][:2] == ["serve", "meta-llama/Meta-Llama-3-70B-Instruct"]
    assert "--tensor-parallel-size=8" in found["vllm"]


@pytest.mark.parametrize("form", ["json", "dot", "mermaid"])
def test_graph(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the graph is printed, so that it can be piped on."""
    assert main(["plan", str(LLAMA), "--graph", form]) == 0
    text = capsys.readouterr().out
    begins = {"json": '{\n  "name"', "dot": "digraph {\n", "mermaid": "flowchart LR\n"}
    assert text.startswith(begins[form])
    assert text.count("rank7") >= 2


def test_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The patch is YAML, and the spec with it is feasible."""
    path = llama(tmp_path, tensor=3)
    assert main(["plan", str(path), "--repair"]) == 1
    first = next(iter(yaml.safe_load_all(capsys.readouterr().out)))
    path.write_text(json.dumps({**LLAMA_70B, **first}))
    assert main(["plan", str(path), "--repair"]) == 0
    assert capsys.readouterr().out == "# Every plan check passes: nothing to repair.\n"


def spec(**changes: Any) -> Spec:
    return made(workloads=[STEADY], **changes)


def expected(**changes: Any) -> Prediction:
    return replace(
        Prediction(
            ttft_ms=Estimate(100, 80, 120),
            tpot_ms=Estimate(10, 9.5, 12345.6),
            capacity=Estimate(4, 3.5, 4.5),
            concurrency=7.6,
            saturated=False,
            outside=(),
        ),
        **changes,
    )


def page(found: Plan, *ranked: Alternative, **changes: Any) -> str:
    declared = spec(**changes)
    return plan_page(declared, found, ranked, launch_text(declared))


def section(text: str, title: str) -> list[str]:
    """The lines below a title, without the header of a table."""
    lines = text.split(f"\n{title}\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [line.strip() for line in lines]


def test_the_prediction_is_a_band() -> None:
    """Two figures for each quantity, and what limits their worth."""
    outside = expected(saturated=True, outside=("layers", "input_tokens"))
    found = replace(plan(spec()), prediction={"steady": expected(), "peak": outside})
    rows = section(page(found), "Prediction")
    assert [row.split("  ")[0] for row in rows[2:4]] == ["steady", "peak"]
    assert "80 to 120 ms" in rows[2]
    assert "10 to 12346 ms" in rows[2]
    assert rows[2].endswith("3.5 to 4.5/s        8")
    assert " ".join(rows[4:]) == (
        "- peak: more is asked than it sustains; beyond what the predictor was fitted on: "
        "layers, input tokens"
    )


def test_the_alternatives_say_their_place_or_why_not() -> None:
    """One row each, the reason shortened to its first; where vLLM refuses it is in the JSON."""
    best = Alternative(parallel=Parallel(tensor=4, data=2, expert=True), feasible=True, place=1)
    declared = Alternative(
        parallel=Parallel(tensor=8),
        feasible=True,
        place=2,
        reasons=("9 % fewer requests/s",),
        throughput=Estimate(1.234, 1, 2),
        declared=True,
    )
    refused = Alternative(
        parallel=Parallel(tensor=3),
        feasible=False,
        reasons=("TP 3: no (vLLM: divide)", "and no"),
    )
    rows = section(page(plan(spec()), best, declared, refused), "Alternatives")
    cells = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows[2:]]
    assert cells == [
        ["1", "TP 4 × DP 2, EP", "-", "the best"],
        ["2", "TP 8 (declared)", "1.23", "9 % fewer requests/s"],
        ["-", "TP 3", "-", "TP 3: no (and 1 more)"],
    ]


def test_long_lists_are_cut_but_for_the_declared() -> None:
    """A page is for reading: the rest is counted."""
    many = [Alternative(parallel=Parallel(tensor=n), feasible=False) for n in range(1, 41)]
    many[-1] = replace(many[-1], declared=True)
    rows = section(page(plan(spec()), *many), "Alternatives")[2:]
    assert len(rows) == 16 + 1 + 1
    assert "TP 40 (declared)" in rows[-2]
    assert rows[-1] == "and 23 more: --json lists them"
    replicas = section(page(plan(spec(parallel={"tensor": 1, "data": 20}))), "Layout")
    assert replicas[-1] == "and 4 more replicas, laid out likewise"


def test_the_layout_of_nodes_and_experts() -> None:
    """Each stage of each replica: its ranks, where they are, its layers and experts."""
    changes = {
        "model": {"id": "mistralai/Mixtral-8x7B-v0.1"},
        "hardware": {"devices_per_node": 4, "nodes": 2},
        "parallel": {"tensor": 2, "data": 2, "pipeline": 2, "expert": True},
        "serve": {"data_parallel_size_local": 1},
    }
    rows = section(page(plan(spec(**changes)), **changes), "Layout")
    cells = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows[2:]]
    assert cells == [
        ["0", "0", "0 to 1", "0: 0 to 1", "0 to 15", "2"],
        ["0", "1", "2 to 3", "0: 2 to 3", "16 to 31", "2"],
        ["1", "0", "4 to 5", "1: 0 to 1", "0 to 15", "2"],
        ["1", "1", "6 to 7", "1: 2 to 3", "16 to 31", "2"],
    ]


def test_memory_is_that_of_the_fullest_rank() -> None:
    """The figures are the plan's own, in GiB."""
    found = plan(spec())
    first = replace(
        found.ranks[0],
        weights_bytes=2 * 1024**3,
        kv_tokens=1024,
        kv_bytes_per_token=1024**2,
        activation_bytes=(1024**2, 3 * 1024**3),
        headroom_bytes=1024**3,
        used_bytes=40 * 1024**3,
    )
    less = replace(first, rank=1, weights_bytes=1)
    (row,) = section(page(replace(found, ranks=(less, first))), "Memory of a device, by stage")[2:]
    assert row.split("  ")[0] == "0"
    for cell in ("2 GiB", "1 GiB", "1 MiB to 3 GiB", "50.22 %"):
        assert f" {cell} " in f"{row} "


def test_a_command_that_cannot_be() -> None:
    """The plan is printed all the same, with the reason."""
    found = spec(serve={"allowed_media_domains": []})
    text = plan_page(found, plan(found), (), launch_text(found))
    assert text.endswith(
        "\nLaunch command\n"
        "  none: serve.allowed_media_domains: vLLM's command line takes no empty list\n"
    )


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        ({}, "TP 1"),
        ({"tensor": 4, "pipeline": 2, "layers": [41, 39]}, "TP 4 × PP 2, layers 41+39"),
        ({"data": 8, "expert": True}, "DP 8, EP"),
        ({"tensor": 8, "prefill_context": 2, "decode_context": 4}, "TP 8 × PCP 2 × DCP 4"),
    ],
)
def test_strategy(parallel: dict[str, Any], text: str) -> None:
    """Sizes of one are not said."""
    assert strategy(Parallel.model_validate(parallel)) == text


def test_a_patch_is_nested_as_the_spec_is() -> None:
    """Workloads are named; quantities have their units; several keys share a section."""
    changes = [
        Change("serve.max_model_len", 4096, 8192),
        Change("serve.gpu_memory_utilization", Fraction(0.9), Fraction(0.85)),
        Change("parallel.layers", None, (40, 40)),
        Change("workloads[0].max_duration", Duration(1_200_000), Duration(600_000)),
        Change("workloads[0].rate", Rate(0.5), None),
    ]
    assert patch(spec(), changes) == {
        "serve": {"max_model_len": 4096, "gpu_memory_utilization": 0.9},
        "parallel": {"layers": None},
        "workloads": [{"name": "steady", "max_duration": "1200000ms", "rate": "0.5/s"}],
    }
    assert plain((Bytes(3), True)) == [3, True]
    # A strategy is given whole, so that nothing of the old one stays.
    assert Parallel.model_validate(plain(Parallel(tensor=4, data=2))) == Parallel(tensor=4, data=2)


def test_a_repair_of_a_variant_goes_on_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The patch is what the top file is to say: over it, every plan check passes."""
    llama(tmp_path, tensor=6)
    top, mended = tmp_path / "top.yaml", tmp_path / "mended.yaml"
    top.write_text("version: 1\nextends: llama.yaml\n")
    assert main(["plan", str(top), "--repair"]) == 1
    patched = capsys.readouterr().out
    assert patched.startswith(f"# To be merged into {top}, not into what it extends.\n# parallel")
    mended.write_text("extends: top.yaml\n" + patched.partition("---\n")[0])
    assert main(["plan", str(mended), "--repair"]) == 0


def test_repairs_are_documents_of_their_own() -> None:
    """The first is the smallest; each says in a comment what it changes."""
    one, other = Change("parallel.tensor", 8, 3), Change("serve.max_num_seqs", 64, None)
    text = repair_text(spec(), Repairs((Repair((one,)), Repair((one, other)))))
    assert text == (
        "# 1 of 2: parallel.tensor: 8 (was 3)\nparallel:\n  tensor: 8\n---\n"
        "# 2 of 2: parallel.tensor: 8 (was 3), serve.max_num_seqs: 64\n"
        "parallel:\n  tensor: 8\nserve:\n  max_num_seqs: 64\n"
    )


def test_what_nothing_mends_is_said() -> None:
    """With how near one came, as comments only."""
    found = Repairs(impossible=(Impossible("memory.max_utilization", "≤ 10 %", "17.3 %"),))
    assert repair_text(spec(), found) == (
        "# No change that was tried mends this.\n"
        "# memory.max_utilization: wanted ≤ 10 %, the closest is 17.3 %\n"
    )


@pytest.mark.skipif(find_spec("aiconfigurator_core") is None, reason="the extra [aic]")
def test_a_second_opinion(capsys: pytest.CaptureFixture[str]) -> None:
    """What aiconfigurator-core expects stands below ours; a model that it does not know is an
    error, and nothing is looked for on the network.
    """
    path = str(LLAMA)
    assert main(["plan", path, "--second-opinion", "meta-llama/Meta-Llama-3.1-70B"]) == 0
    assert "\nSecond opinion, by aiconfigurator-core\n  steady: TTFT " in capsys.readouterr().out
    assert main(["plan", path, "--second-opinion"]) == 2
    assert "did you mean 'meta-llama/Meta-Llama-3.1-70B'?" in capsys.readouterr().err
