"""The page of HTML, as text; in a browser it is tested in tests/browser."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pytest_llmdeploy.baseline import Earlier
from pytest_llmdeploy.evidence import Status
from pytest_llmdeploy.load.samples import MOST_REQUESTS
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.plan.graph import deployment_graph
from pytest_llmdeploy.report import Checklist, Context, files
from pytest_llmdeploy.report.comparison import changes
from pytest_llmdeploy.report.html import render
from pytest_llmdeploy.report.html.drawing import thinned
from pytest_llmdeploy.report.html.figures import figures
from tests.browser.reports import HOSTILE, loaded
from tests.plan.deployments import made
from tests.plan.test_search import STEADY
from tests.report.rows import checklist, full_checklist, row
from tests.specs import write_spec


def planned(**changes: Any) -> Checklist:
    """A checklist of the plan with these changes, without a server."""
    spec = made(**changes)
    found = plan(spec)
    utilization = row(check="planned_memory_utilization", limit=0.9, unit="fraction")
    context = Context(plan=found, graph=deployment_graph(spec, found))
    return checklist(rows=[utilization], is_plan_only=True, context=context)


TRAFFIC = {"invalid": ["the client was late"], "interrupted": "Ctrl-C", "failures": {"a": HOSTILE}}


@pytest.mark.parametrize(
    ("made_of", "titles"),
    [
        (full_checklist(), ["used_bytes of each device", "power of each device"]),
        (checklist(), []),
        (checklist(broken="a.yaml:1: version: is required"), []),
        (planned(), ["Memory", "Deployment"]),
        (planned(workloads=[STEADY]), ["Memory", "Strategies", "Deployment"]),
        (planned(parallel={"tensor": 3}), ["Deployment"]),
        (planned(model={"id": "unknown/model"}), ["Deployment"]),
        (checklist(facts={"traffic": {"steady": {**TRAFFIC, "counts": {"a": 3}}}}), []),
    ],
    ids=["full", "empty", "broken", "planned", "predicted", "infeasible", "unknown", "invalid"],
)
def test_whatever_became_of_a_spec(made_of: Checklist, titles: list[str]) -> None:
    """There is a page with the verdict, and a figure for what is known."""
    text = render([made_of])
    assert f">{made_of.verdict}</p>" in text
    found = [figure.title for figure in figures(made_of)]
    assert len(found) == len(titles)
    assert all(name.startswith(title) for name, title in zip(found, titles, strict=True))


def test_traffic_that_does_not_count_says_so() -> None:
    """Why it was broken off, why it does not count, and what a server answered, as text."""
    text = render([checklist(facts={"traffic": {"steady": {**TRAFFIC, "counts": {"a": 3}}}})])
    for part in ("broken off: Ctrl-C", "does not count: the client was late", "3 × a, one of them"):
        assert part in text
    assert "<img" not in text


def test_hostile_texts_are_text() -> None:
    """Neither markup nor control characters get into the page, nor what turns a line around."""
    bad = checklist(rows=[row(Status.FAIL, result=f"{HOSTILE}\u202e", item=HOSTILE)], name=HOSTILE)
    text = render([*loaded(), bad])
    assert "<img" not in text
    assert not {"\x00", "\x1b", "\u202e"} & set(text)
    assert text.count("</script>") == 1


def test_the_figures_are_those_of_the_run() -> None:
    """What a figure says is counted from what came back, not from what is drawn of it."""
    says = {figure.title: figure.says for figure in figures(loaded()[0])}
    assert "3,000 of 3,000 requests, p50 149.4 ms" in says["TTFT of steady, as observed"]
    told = "bound of TTFT p99, steady from the first 420 of 3,000 requests: 420 ms"
    assert told in says["TTFT of steady, as observed"]
    assert says["STALL of steady, as observed"].startswith("75 of 3,000 requests")
    assert "most in flight: 20" in says["The course of steady"]


def test_a_limit_is_that_of_its_workload() -> None:
    """Not of another one whose name begins alike."""
    other = row(
        id="a.yaml::ttft[steady-long-p99]", item="TTFT p99, steady-long", unit="ms", limit=5.0
    )
    shown = loaded()[0]
    found = figures(replace(shown, rows=[*shown.rows, other]))
    says = {figure.title: figure.says for figure in found}["TTFT of steady, as observed"]
    assert "limit of TTFT p99, steady: 1,000 ms" in says
    assert "steady-long" not in says


def test_at_capacity_the_limits_are_the_same() -> None:
    """The bounds are not: they are of the traffic that the rows judged."""
    shown = loaded()[0]
    steady = shown.facts["traffic"]["steady"]
    facts = {"traffic": {"steady": {**steady, "at_capacity": steady}}}
    found = {figure.title: figure for figure in figures(replace(shown, facts=facts))}
    figure = found["TTFT of steady, at capacity, as observed"]
    assert "limit of TTFT p99, steady: 1,000 ms" in figure.says
    assert "bound" not in figure.says
    assert "The course of steady, at capacity" in found


def test_a_distribution_has_one_legend() -> None:
    """A limit is dashed, a bound is not, and each line is named once, in full."""
    shown = loaded()[0]
    svg = next(f.svg for f in figures(shown) if f.title == "TTFT of steady, as observed")
    names = [
        "limit of TTFT p99, steady",
        "bound of TTFT p99, steady from the first 420 of 3,000 requests",
    ]
    assert [svg.count(f">{name}</text>") for name in names] == [1, 1]
    assert svg.count("role-legend-entry") == 1


def test_letters_that_no_page_has() -> None:
    """Half a pair of surrogates, in an item and so in a plot's legend, is shown as unknown."""
    odd = row(id="a.yaml::ttft[steady-p50]", item="TTFT \ud800", unit="ms", limit=5.0)
    shown = loaded()[0]
    text = render([replace(shown, rows=[*shown.rows, odd])])
    assert text.encode("utf-8").decode().count("limit of TTFT \N{REPLACEMENT CHARACTER}") > 1


def test_a_device_that_was_lost() -> None:
    """What was seen of it is drawn, beside what was seen of the others."""
    series = {"GPU 0": {"power": [640.0, 641.0, 642.0]}, "GPU 1": {"power": [650.0]}}
    looks = {"times": [0.0, 1.0, 2.0], "series": series}
    (figure,) = figures(checklist(facts={"devices": {"under_load": looks}}))
    assert [line[0::3] for line in figure.table] == [["GPU 0", "3"], ["GPU 1", "1"]]


def test_strategies_without_a_prediction_are_told() -> None:
    """A point for each that has one, its shape by whether it is within the limits; the others are
    in the table, with what speaks against them.
    """
    shown = planned(workloads=[STEADY])
    assert shown.context.plan is not None
    considered = shown.context.plan.alternatives
    (figure,) = (f for f in figures(shown) if f.title == "Strategies, predicted")
    kinds = Counter(line[1] for line in figure.table)
    assert kinds["infeasible"] == sum(not one.feasible for one in considered) > 0
    within = sum(one.meets_limits and not one.declared for one in considered)
    assert kinds["within the limits"] == within > 0
    assert kinds["beyond a limit"] > 0
    assert kinds["declared"] == 1
    assert all(line[-1] for line in figure.table if line[1] in {"infeasible", "beyond a limit"})
    assert (
        figure.svg.count('aria-roledescription="point"') == len(figure.table) - kinds["infeasible"]
    )
    assert "infeasible, for which nothing is predicted" in figure.says


def test_more_requests_than_a_report_has() -> None:
    """The figures are those of the first ones, and say so."""
    count = MOST_REQUESTS
    requests = {
        "due": [number / 100 for number in range(count)],
        "ended": [number / 100 + 1 for number in range(count)],
        "outcome": ["ok"] * count,
        **dict.fromkeys(("ttft", "tpot", "e2el", "stall"), [1.0] * count),
    }
    found = figures(checklist(facts={"traffic": {"steady": {"requests": requests}}}))
    assert next(found).says.startswith("20,000 of the first 20,000 requests")


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [(("READY", "NOT READY"), "verdict: READY → NOT READY"), (("READY", "READY"), "Nothing.")],
)
def test_what_changed_since_the_baseline(verdicts: tuple[str, str], told: str) -> None:
    """Where there is one."""
    was, now = ({"name": "a", "verdict": verdict} for verdict in verdicts)
    found = changes(Earlier.of(was), Earlier.of(now), 0.95)
    assert told in render([replace(checklist(), changes=found)])
    assert "Changed since" not in render([checklist()])


def test_memory_is_held_against_the_limit() -> None:
    """Parts and what is free are the whole device; the limit is that of the row."""
    memory, *_ = figures(planned())
    assert "limit 90 % 71.68 GiB" in memory.says
    assert len(memory.table) == 8


@pytest.mark.parametrize(
    ("layout", "nodes", "boxes", "more"),
    [
        ({"tensor": 8}, 1, 8, ""),
        ({"tensor": 8, "pipeline": 2}, 2, 16, ""),
        ({"tensor": 4, "data": 32}, 16, 8, "and 24 more replicas"),
    ],
    ids=["8", "16", "128"],
)
def test_the_graph_stays_readable(
    layout: dict[str, int], nodes: int, boxes: int, more: str
) -> None:
    """Every rank up to 64 of them; beyond, a box for each stage of 8 replicas."""
    hardware = {"device": "H100-SXM-80GB", "devices_per_node": 8, "nodes": nodes}
    found = planned(parallel=layout, hardware=hardware)
    svg = next(f.svg for f in figures(found) if f.title == "Deployment graph")
    assert svg.count(">rank ") + svg.count(">ranks ") == boxes
    assert more in svg


def test_what_is_left_out_of_a_plot_is_never_the_highest() -> None:
    """Of points that lie together, the highest stays."""
    pairs = [(float(at), 99.0 if at == 4321 else at % 7.0) for at in range(10_000)]
    found = thinned(pairs, 100)
    assert len(found) == 100
    assert (4321.0, 99.0) in found
    assert found == sorted(found)
    assert thinned(pairs[:3], 100) == pairs[:3]


def test_without_the_extra_nothing_is_launched(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usage error says what to install."""
    write_spec(pytester.path / "s.yaml")
    monkeypatch.setattr(files, "find_spec", lambda _name: None)
    result = pytester.runpytest("--deploy-spec=s.yaml", "--deploy-report=out.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*out.html: pip install 'pytest-llmdeploy[[]report[]]' first"])
