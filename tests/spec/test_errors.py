"""Every mistake is answered with file:line, key path, what was found and what is allowed: the texts
are in tests/test_error_texts.py.
"""

import re
from pathlib import Path

import pytest

from pytest_llmdeploy.spec import SpecError, looks_like_spec

from .documents import LOAD, SMALLEST, load, workload

DATASET = (
    workload("")
    .replace("input_tokens: 8", "input_tokens: {dataset: prompts.jsonl}")
    .replace("output_tokens: 8", "seed: 1")
)
DATASETS: dict[str, bytes] = {
    "good.jsonl": b'{"prompt": [1, 2, 3, 4], "output_tokens": 5}\n\n'
    b'{"prompt": [1, 2, 4], "input_tokens": 3, "output_tokens": 1}',
    "outputless.jsonl": b'{"prompt": "a", "output_tokens": 1}\n{"prompt": "b"}\n',
    "empty.jsonl": b"\n  \n",
    "prompts.jsonl": b'{"prompt": "a"}\n\n{"promt": "b"}\n{"prompt": [1, -1]}\n'
    b'{"prompt": [1], "input_tokens": 2}\n{"prompt": ""}\n',
}

# fmt: off
BROKEN: dict[str, str | bytes] = {
    "alias": SMALLEST + "require:\n  memory: &m {max_utilization: 80%}\n  balance: *m\n",
    "anchor alone": SMALLEST + "name: &x here\n",
    "another version": SMALLEST.replace("1", "2"),
    "arrival": workload("arrival: burst"),
    "attach without a url": SMALLEST + "attach: {probes: {dcgm: http://a:9400}}\n",
    "attach to no url": SMALLEST + "attach:\n  url: vllm:8000\n",
    "attach to a port that is none": SMALLEST + "attach: {url: http://vllm:800000}\n",
    "attach with a password": SMALLEST + "attach: {url: http://me:hunter2@vllm:8000}\n",
    "attach to engines": SMALLEST + "attach:\n  url: http://a\n  engines:\n    - http://b\n"
                                    "    - c\n",
    "attach to one engine": SMALLEST + "attach: {url: http://a, engines: http://b}\n",
    "attach to an exporter": SMALLEST + "attach:\n  url: http://a\n  probes:\n    dcgm: a:9400\n",
    "attach to pods": SMALLEST + "attach:\n  url: http://a\n  probes:\n    dcgm: http://a\n"
                                 "    pod: vllm-*-a\n",
    "attach to probes": SMALLEST + "attach: {url: http://a, probes: {dgcm: http://a}}\n",
    "attach below the concurrency": workload("", loop="concurrency: 4").replace(
        "workloads:", "attach: {url: http://a, max_concurrency: 3}\nworkloads:"),
    "attach with a cap of zero": SMALLEST + "attach: {url: http://a, max_requests: 0}\n",
    "both loops": workload("concurrency: 4"),
    "boolean as text": SMALLEST + "serve: {enforce_eager: 'yes'}\n",
    "byte unit": SMALLEST + "require: {memory: {min_headroom: 8 gigs}}\n",
    "closed loop keeps up": workload("require: {keeps_up: true}", loop="concurrency: 4"),
    "confidence": SMALLEST + "confidence: 100%\n",
    "confidence below chance": SMALLEST + "confidence: 30%\n",
    "capacity of a closed loop": workload("require: {errors: 0%, capacity: 9/s}",
                                          loop="concurrency: 4"),
    "capacity of zero": workload("require: {errors: 0%, capacity: 0}"),
    "capacity without a limit": workload("require: {capacity: 9/s}"),
    "choice of a flag": SMALLEST + "serve: {scheduling_policy: priorty}\n",
    "deep nesting": "[" * 100_000,
    "deep mappings": "{a: " * 100_000,
    "device": SMALLEST.replace("cpu", "H100-SMX-80GB"),
    "duplicate key": SMALLEST + "name: a\nname: b\n",
    "duplicate key inside": SMALLEST + "serve:\n  max_num_seqs: 1\n  max_num_seqs: 2\n",
    "duplicate workload": SMALLEST + LOAD.replace("]", ", {name: a, input_tokens: 1, "
                                                  "output_tokens: 1, rate: 1/s}]"),
    "duration without a unit": workload("max_duration: 30"),
    "duration in an alias of the metric": workload("require:\n  prefill:\n    p99: 3"),
    "empty": "",
    "empty range": workload("").replace("input_tokens: 8", "input_tokens: {uniform: [9, 3]}"),
    "engine version": SMALLEST + "engine: {version: newest}\n",
    "environment name": SMALLEST + "serve: {env: {A.B: x}}\n",
    "environment value": SMALLEST + "serve: {env: {A: true}}\n",
    "environment value empty": SMALLEST + "serve: {env: {A: {}}}\n",
    "environment value unknown": SMALLEST + "serve: {env: {A: {from: B}}}\n",
    "environment value that may be a secret": SMALLEST + "serve: {env: {HF_TOKEN: [hunter2]}}\n",
    "fraction over one": SMALLEST + "require: {memory: {max_utilization: 85}}\n",
    "flag unknown": SMALLEST + "serve: {max_num_seq: 4}\n",
    "flag elsewhere": SMALLEST + "serve: {tensor_parallel_size: 4}\n",
    "flag with a dash": SMALLEST + "serve: {max-model-len: 4}\n",
    "flag twice": SMALLEST + "serve: {seed: 1, extra_args: [--seed=2]}\n",
    "flag twice in extra_args": SMALLEST + "serve: {extra_args: [--seed=1, --seed, '2']}\n",
    "flag twice by alias": SMALLEST + "serve: {compilation_config: x, extra_args: [-cc=3]}\n",
    "flag twice by long alias": SMALLEST + "serve: {gpu_memory_utilization: 0.5, "
                                           "extra_args: [--device-memory-utilization, '0.6']}\n",
    "flag twice, negated": SMALLEST + "serve: {enable_prefix_caching: true, "
                                      "extra_args: [--no-enable-prefix-caching]}\n",
    "flag elsewhere in extra_args": SMALLEST + "serve: {extra_args: [-tp=2]}\n",
    "flag elsewhere, underscores": SMALLEST + "serve: {extra_args: [--pipeline_parallel_size=2]}\n",
    "flag elsewhere, negated": SMALLEST + "serve: {extra_args: [--no-enable-expert-parallel]}\n",
    "flag elsewhere, abbreviated": SMALLEST + "serve: {extra_args: [--api-k=abc]}\n",
    "flag with a key of its own": SMALLEST + "serve: {extra_args: [--trust-remote-code]}\n",
    "flag with a key of its own, abbreviated": SMALLEST + "serve: {extra_args: [--trust-remote]}\n",
    "key that is no word": SMALLEST + "? [a, b]\n: 1\n",
    "key in pydantic's brackets": SMALLEST + "'[key]': 3\n",
    "keeps_up is true or absent": workload("require: {keeps_up: false}"),
    "latin-1": (SMALLEST + "name: caf\N{LATIN SMALL LETTER E WITH ACUTE}\n").encode("latin-1"),
    "list at the top": "- version: 1\n",
    "metric twice": workload("require: {prefill: {p99: 1s}, ttft: {p50: 1s}}"),
    "missing keys": "version: 1\n",
    "more than a megabyte": SMALLEST + "#" * 1_000_000,
    "not a number": workload("").replace(
        "input_tokens: 8", "input_tokens: {lognormal: {mean: nan, sigma: .inf, max: 9}}"),
    "not a whole number": SMALLEST + "hardware_: 1\nserve: {max_num_seqs: 1.5}\n",
    "not YAML": SMALLEST + "serve: {a: [}\n",
    "no loop": workload("", loop=""),
    "name with a path": SMALLEST + "name: ../../etc/passwd\n",
    "name of many lines": SMALLEST + 'name: "a\\nb"\n',
    "NUL": SMALLEST + 'name: "a\\0b"\n',
    "null": "version: 1\nmodel:\nhardware: {device: cpu}\n",
    "number too small": SMALLEST + "parallel: {tensor: 0}\n",
    "percentile": workload("require: {ttft: {p100: 1s, median: 1s}}"),
    "rate of zero": workload("", loop="rate: 0/s"),
    "secret": SMALLEST + "serve: {env: {HF_TOKEN: hf_abc}}\n",
    "secret in full": SMALLEST + "serve: {env: {my_api_key: {text: abc}}}\n",
    "secret as a flag": SMALLEST + "serve: {api_key: abc}\n",
    "secret in extra_args": SMALLEST + "serve: {extra_args: [--api-key=abc]}\n",
    "tab": SMALLEST + "\tname: x\n",
    "tag": SMALLEST + "name: !!python/object/apply:os.system [ls]\n",
    "text as a number": SMALLEST + "serve: {max_num_seqs: '128'}\n",
    "mix and input": workload("mix: [{input_tokens: 1, output_tokens: 1}]"),
    "mix without output": workload("mix: [{input_tokens: 1, output_tokens: 1}, {input_tokens: 2}]")
    .replace("input_tokens: 8\n", "\n").replace("output_tokens: 8\n", "\n"),
    "neither mix nor input": workload("").replace("input_tokens: 8", "seed: 1"),
    "no output": workload("").replace("output_tokens: 8", "seed: 1"),
    "endpoint": workload("endpoint: embeddings"),
    "shared prefix too long": workload("shared_prefix: 9"),
    "weight of zero": workload("mix: [{weight: 0, input_tokens: 1, output_tokens: 1}]"),
    "output from a dataset": DATASET.replace("prompts", "good").replace(
        "seed: 1", "output_tokens: {dataset: good.jsonl}"),
    "dataset missing": DATASET.replace("prompts", "missing"),
    "dataset a folder": DATASET.replace("prompts", "folder"),
    "dataset empty": DATASET.replace("prompts", "empty"),
    "dataset with mistakes": DATASET,
    "dataset without outputs": DATASET.replace("prompts", "outputless"),
    "dataset for a chat": DATASET.replace("prompts", "good").replace("seed: 1", "endpoint: chat"),
    "dataset shares less": DATASET.replace("prompts", "good")
    .replace("seed: 1", "shared_prefix: 3"),
    "dataset in a mix with a prefix": DATASET.replace(
        "input_tokens: {dataset: prompts.jsonl}", "shared_prefix: 1").replace("seed: 1",
        "mix: [{input_tokens: {dataset: good.jsonl}}, {input_tokens: 9, output_tokens: 1}]"),
    "tokens": workload("").replace("input_tokens: 8", "input_tokens: [1, 2]"),
    "too many devices": SMALLEST + "parallel: {tensor: 100000000000000000}\n",
    "stall before the limit": workload("stall_timeout: 5s\nrequire: {ttft: {p50: 6s}}"),
    "stall before anything": workload("stall_timeout: 0s"),
    "too many requests": workload("max_duration: 1h", loop="rate: 5000/s"),
    "too many values": SMALLEST + "checks: [" + "1," * 30_000 + "]\n",
    "long value": SMALLEST + "parallel: {tensor: " + "x" * 5000 + "}\n",
    "two documents": SMALLEST + "---\n" + SMALLEST,
    "unknown key": SMALLEST + "modle: {}\n",
    "unknown key inside": workload("require: {prefil: {p99: 1s}}"),
    "unknown key of a record": SMALLEST + "parallel: {tensors: 4}\n",
    "waiver without a reason": SMALLEST + "waive:\n  interconnect: hidden\n  memory.x: ' '\n",
    "workload name": workload("").replace("name: a", "name: a b"),
    "workloads as a mapping": SMALLEST + "workloads: {steady: {rate: 1/s}}\n",
}
# fmt: on


def errors(folder: Path, text: str | bytes) -> str:
    """What a user reads, without the folder."""
    (folder / "folder.jsonl").mkdir(exist_ok=True)
    for name, lines in DATASETS.items():
        (folder / name).write_bytes(lines)
    with pytest.raises(SpecError) as caught:
        load(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("name", BROKEN)
def test_every_error_says_where(tmp_path: Path, name: str) -> None:
    """Each line begins with file:line, and the line is in the file."""
    text = BROKEN[name]
    last = len(text.splitlines()) + 1
    for line in errors(tmp_path, text).splitlines():
        found = re.match(r"spec\.yaml:(\d+): \S", line)
        assert found, line
        assert 1 <= int(found[1]) <= last


@pytest.mark.parametrize(
    "serve",
    [
        "{extra_args: [--api-key=hunter2]}",
        "{extra_args: --api-key=hunter2}",
        "{env: {K_KEY: hunter2}}",
        "{env: {K_KEY: [hunter2]}}",
        "{env: K_KEY=hunter2}",
        "{env: {K_KEY: {from_env: [hunter2]}}}",
    ],
)
def test_an_error_does_not_repeat_a_secret(tmp_path: Path, serve: str) -> None:
    """The answer to a secret in a spec ends up in logs; the secret does not."""
    assert "hunter2" not in errors(tmp_path, f"{SMALLEST}serve: {serve}\n")


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """Three mistakes in three places are three lines."""
    text = errors(tmp_path, SMALLEST + "modle: 1\nparallel: {tensor: x}\nconfidence: 7\n")
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        "spec.yaml:5:",
        "spec.yaml:6:",
        "spec.yaml:4:",
    ]


def test_thousands_of_mistakes_are_counted_not_listed(tmp_path: Path) -> None:
    """A file of something else does not flood the terminal."""
    lines = errors(tmp_path, SMALLEST + "".join(f"a{n}: 1\n" for n in range(5000))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "spec.yaml:1: and 4,980 more"


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_what_can_not_be_read_is_an_error_of_the_spec(tmp_path: Path, name: str) -> None:
    """A missing file and a folder are answered like a mistake."""
    assert not looks_like_spec(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "is_spec"),
    [(SMALLEST, True), ("version: 3\nmodel: x\n", True), ("services: {}\n", False),
     ("- version\n- model\n", False), ("version: [", False), ("", False)],
)  # fmt: skip
def test_only_what_has_version_and_model_looks_like_a_spec(
    tmp_path: Path, text: str, is_spec: bool
) -> None:
    """Other YAML in a user's tree is left alone."""
    (tmp_path / "a.yaml").write_text(text)
    assert looks_like_spec(tmp_path / "a.yaml") is is_spec


def test_a_request_may_be_as_slow_as_its_limits(tmp_path: Path) -> None:
    """Who waits for more than a minute says so by the limit alone."""
    limits = {"{}": 60, "{ttft: {p50: 100s}}": 100, "{stall: {p99: 70s}}": 70}
    limits["{goodput: {share: 90%, ttft: 80s}}"] = 80
    for require, seconds in limits.items():
        spec = load(tmp_path, workload(f"require: {require}"))
        assert spec.workloads[0].patience.seconds == seconds
