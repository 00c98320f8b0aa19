"""A server that runs elsewhere: every replica is asked, and its GPUs are those of its pods."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llmdeploy.checks import Registry
from pytest_llmdeploy.evidence import Judgement, Status
from pytest_llmdeploy.probes.addresses import behind
from pytest_llmdeploy.probes.dcgm import ENERGY
from pytest_llmdeploy.probes.endpoint import Endpoint
from pytest_llmdeploy.serving import ServerFailedError
from pytest_llmdeploy.serving.start import attach
from pytest_llmdeploy.session import Options, Session
from pytest_llmdeploy.spec import load_spec
from tests.checks.scenes import MODEL, Scene, gpus
from tests.exporter import Pages, cards, exporter, page, pages
from tests.specs import REPOSITORY, write_spec
from tests.standin import Standin

# The checks that are tried here.
ELSEWHERE = {"replicas", "pods_on_devices"}
ENGINES = {"url": "http://a", "engines": ["http://b", "http://c"]}
PODS = {"url": "http://a", "probes": {"dcgm": "http://b", "namespace": "llm", "pod": "vllm-*"}}
QUICK = [f"-pno:{name}" for name in ("hypothesispytest", "syrupy", "anyio", "cacheprovider")]


def texts(
    model: str = "m",
    length: int = 512,
    version: str = "0.32.0",
    cache: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The pages of a replica."""
    labels = {"block_size": "16", "num_gpu_blocks": "100", "kv_cache_size_tokens": "1600"}
    labels |= cache or {}
    said = ",".join(f'{name}="{text}"' for name, text in labels.items())
    return {
        "/health": "",
        "/v1/models": json.dumps({"data": [{"id": model, "max_model_len": length}]}),
        "/version": json.dumps({"version": version}),
        "/metrics": f"vllm:cache_config_info{{{said}}} 1\n",
    }


@contextmanager
def replicas(*found: Mapping[str, str]) -> Iterator[Sequence[Pages]]:
    with ExitStack() as stack:
        yield [stack.enter_context(pages(each)) for each in found]


def judged(found: Sequence[Pages]) -> Judgement:
    endpoints = [Endpoint(each.url) for each in found]
    return Scene(spec={"attach": ENGINES}, server={"replicas": endpoints}).judge("replicas")


def test_replicas_that_are_alike() -> None:
    """They answer and say the same; what each has measured for itself may differ."""
    more = {"num_gpu_blocks": "101", "kv_cache_size_tokens": "1616"}
    with replicas(texts(), texts(), texts(cache=more)) as found:
        row = judged(found)
    assert (row.status, row.result) == (Status.PASS, "3 of 3 answer")
    assert row.requirement == "all 3 alike"


@pytest.mark.parametrize(
    ("other", "result"),
    [
        (texts(model="n"), "2 of 2 answer; http://c has models n, not m"),
        (texts(length=1024), "2 of 2 answer; http://c has max_model_len 1024, not 512"),
        (texts(version="0.31.0"), "2 of 2 answer; http://c has version 0.31.0, not 0.32.0"),
        (texts(cache={"block_size": "32"}), "2 of 2 answer; http://c has block_size 32, not 16"),
        ({}, "1 of 2 answer; http://c: /health does not answer 200"),
        ({**texts(), "/version": "?"}, "1 of 2 answer; http://c: http://c/version is not JSON"),
    ],
)
def test_a_replica_that_is_not(other: Mapping[str, str], result: str) -> None:
    """The one that differs, or does not answer, is named with what it says."""
    with replicas(texts(), other) as found:
        row = judged(found)
    assert row.status is Status.FAIL
    assert row.result.replace(found[1].url, "http://c") == result
    assert row.hint


def test_pods_on_the_devices() -> None:
    """Another pod on a GPU is named; pods that can't be seen are an error."""
    ours = replace(gpus(), items=tuple(replace(d, pods=["llm/vllm-0"]) for d in gpus()))
    shared = replace(ours[3], pods=["llm/vllm-0", "other/notebook"])
    taken = replace(ours, items=(*ours[:3], shared, *ours[4:]))

    def judge(devices: Any) -> Judgement:
        return Scene(spec={"attach": PODS}, devices=devices).judge("pods_on_devices")

    assert judge(ours).status is Status.PASS
    row = judge(taken)
    assert (row.status, row.result) == (Status.FAIL, "other/notebook (GPU 3)")
    assert judge(gpus(problem="error: HTTP 500")).status is Status.ERROR


def test_devices_present_elsewhere() -> None:
    """Pods have the GPUs that they use, whatever else their nodes have."""
    declared = {"attach": PODS, "parallel": {"tensor": 4}}
    assert Scene(spec=declared, present=gpus((1,) * 4)).judge("devices_present").status == "PASS"
    assert Scene(spec=declared, present=gpus((1,) * 8)).judge("devices_present").status == "FAIL"
    nodes = {"attach": {**PODS, "probes": {"dcgm": "http://b"}}, "hardware": {"nodes": 2}}
    assert Scene(spec=nodes, present=gpus((1,) * 16)).judge("devices_present").status == "PASS"


def test_copies_are_data_parallel() -> None:
    """Replicas that know nothing of each other are the declared copies."""
    declared = {"attach": ENGINES, "parallel": {"tensor": 4, "data": 2}}
    fingerprint = "vllm-0.32.0-tp4-0a1b2c3d"
    nobody = [Endpoint(f"http://127.0.0.1:{port}") for port in (2, 3)]
    server = {"fingerprint": fingerprint, "replicas": nobody}
    assert Scene(spec=declared, server=server).judge("server_limits").status == "PASS"
    one = Scene(spec=declared, server={**server, "replicas": ()})
    assert one.judge("server_limits").status == "FAIL"


def test_a_replica_that_was_started_otherwise() -> None:
    """Each replica is asked for its own settings; the one that differs is named."""
    declared = {"attach": ENGINES, "parallel": {"tensor": 8}, "engine": None}
    same = texts(MODEL, 8192, cache={"gpu_memory_utilization": "0.85"})
    other = texts(MODEL, 8192, cache={"gpu_memory_utilization": "0.95"})
    with replicas(same, other) as found:
        endpoints = [Endpoint(each.url) for each in found]
        row = Scene(spec=declared, server={"replicas": endpoints}).judge("server_limits")
    assert row.status is Status.FAIL
    assert row.result.startswith(f"gpu_memory_utilization is 0.95, not 0.85 ({found[1].url}); ")
    assert set(row.evidence["servers"]) == {"http://127.0.0.1:1", *(each.url for each in found)}


def session(tmp_path: Path, url: str | None = None) -> Session:
    """A run of a spec that names a server, its replicas and its GPUs."""
    attached = {
        "url": "http://spec:8000",
        "engines": ["http://b"],
        "probes": {"dcgm": "http://c"},
    }
    path = write_spec(tmp_path / "s.yaml", attach=attached)
    options = Options(url=url)
    return Session(tmp_path, [path], options, Registry(), lambda _: pytest, tmp_path)


def test_what_a_run_attaches_to(tmp_path: Path) -> None:
    """The server of the spec; --deploy-url stands for another one, of which the spec knows no
    replicas and no devices. Nothing is judged that a launch would have to be ours for.
    """
    own = session(tmp_path)
    names = [requirement.check.name for requirement in own.items(own.paths[0]).requirements]
    assert own.deployment(own.paths[0]).url == "http://spec:8000"
    assert "replicas" in names
    assert not {"clean_stop", "memory_returned", "devices_idle"} & set(names)
    other = session(tmp_path, "http://127.0.0.1:1")
    assert other.deployment(other.paths[0]).url == "http://127.0.0.1:1"
    other_names = [item.check.name for item in other.items(other.paths[0]).requirements]
    assert set(names) - set(other_names) == {"replicas"}
    assert other.items(other.paths[0]).spec.source.path == other.paths[0]


def test_every_replica_behind_a_name(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A headless Service has the addresses of all pods: each is asked, by the Service's name. What
    the KV cache holds is what the one with the least holds.
    """
    less = texts(cache={"kv_cache_size_tokens": "800"})
    with pages(texts()) as first, pages(less, "127.0.0.2", first.port) as second:
        real = socket.getaddrinfo

        def resolve(host: str, *given: Any, **more: Any) -> Any:
            if host != "vllm-headless":
                return real(host, *given, **more)
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, first.port))
                for address in ("127.0.0.2", "127.0.0.1")
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        engines = [f"http://vllm-headless:{first.port}/v1"]
        path = write_spec(tmp_path / "s.yaml", attach={"url": standin.url, "engines": engines})
        server = attach(load_spec(path), standin.url, lambda _: None)
        assert [each.url for each in server.replicas] == [first.url, second.url]
        assert server.cache["kv_cache_size_tokens"] == "800"
        assert {*first.hosts, *second.hosts} == {f"vllm-headless:{first.port}"}
        path = write_spec(path, attach={"url": standin.url, "engines": ["https://vllm-headless"]})
        with pytest.raises(ServerFailedError, match=r"(?s)has 2 addresses, .*hint: check attach,"):
            attach(load_spec(path), standin.url, lambda _: None)


def test_addresses_without_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in brackets, with the port and the path that the name had."""
    found = [(socket.AF_INET6, 1, 6, "", (f"fd00::{n}", 80, 0, 0)) for n in (2, 1)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    urls = [each.url for each in behind(Endpoint("http://pods:80/llm"))]
    assert urls == ["http://[fd00::1]:80/llm", "http://[fd00::2]:80/llm"]
    found.pop()
    assert behind(Endpoint("https://pods")) == [Endpoint("https://pods")]


DOCUMENT = (REPOSITORY / "docs" / "how-to" / "attach.md").read_text()
# What the stand-ins take the place of, by the URLs of the document.
SERVICE, HEADLESS, EXPORTER = (
    "http://vllm.llm.svc:8000",
    "http://vllm-headless.llm.svc:8000",
    "http://dcgm-exporter.gpu-operator.svc:9400",
)


@pytest.fixture(scope="module")
def served() -> Iterator[Standin]:
    """A replica of the document's deployment."""
    cache = {"gpu_memory_utilization": "0.85", "block_size": "16", "kv_cache_size_tokens": "400000"}
    with Standin(
        model="meta-llama/Meta-Llama-3-8B-Instruct",
        max_model_len=8192,
        vocab_size=128256,
        tensor_parallel=4,
        cache_config=cache,
    ) as running:
        yield running


def test_the_documents_spec(served: Standin, pytester: pytest.Pytester) -> None:
    """READY, with what dcgm-exporter can't say waived by name, and nothing that a launch has."""
    (text,) = re.findall(
        r'^```yaml title="specs/\S+"\n(.*?)^```', DOCUMENT, re.MULTILINE | re.DOTALL
    )
    reply = {path: served.call("GET", path).body.decode() for path in texts()}
    # Energy is taken from one page to the next.
    alive = page([replace(card, values={ENERGY: f"{card.index}{{n}}"}) for card in cards()])
    with exporter(alive) as fake, pages(reply) as other:
        for ours, theirs in (
            (SERVICE, served.url),
            (HEADLESS, f"{served.url}, {other.url}"),
            (EXPORTER, fake.url),
        ):
            assert ours in text
            text = text.replace(ours, theirs)
        (pytester.path / "s.yaml").write_text(text)
        result = pytester.runpytest(*QUICK, "--deploy-spec=s.yaml", "--deploy-report=out.json")
    (entry,) = json.loads((pytester.path / "out.json").read_text())["specs"]
    rows = {row["check"]: row["status"] for row in entry["rows"]}
    assert entry["verdict"] == "READY", result.outlines
    waived = {name for name, status in rows.items() if status == "WAIVED"}
    assert waived == {"nvlink_lanes", "nvlink_fabric", "numa", "only_ours"}
    assert {
        "replicas",
        "pods_on_devices",
        "interconnect",
        "memory_headroom",
        "ecc",
        "xids",
        "clocks",
    } <= set(rows)
    assert not {"clean_stop", "memory_returned", "devices_idle"} & set(rows)
    assert result.ret == 0
