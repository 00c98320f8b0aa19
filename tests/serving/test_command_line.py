"""A `vllm serve …` line and a spec say the same, there and back."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.facts import Flag, vllm_flags
from pytest_llmdeploy.serving.command import MODEL_FLAGS, PARALLEL_FLAGS, flags, shell_command
from pytest_llmdeploy.serving.command_line import CommandLineError, SpecData, spec_from_command
from pytest_llmdeploy.spec import Spec

# They have no key: a test of its own says what becomes of them.
WITHOUT_KEY = {"model", "host", "port", "uds", "api_key", "hf_token"}
SERVED = [
    flag
    for flag in vllm_flags().values()
    if flag.name not in {*WITHOUT_KEY, *MODEL_FLAGS, *PARALLEL_FLAGS}
]
# What the spec's own records demand of a value.
TYPED: Mapping[str, st.SearchStrategy[Any]] = {
    "max_model_len": st.integers(1, 10**9),
    "max_num_batched_tokens": st.integers(1, 10**9),
    "max_num_seqs": st.integers(1, 10**6),
    "block_size": st.integers(1, 1024),
    "kv_cache_memory_bytes": st.integers(0, 10**15),
    "max_num_scheduled_tokens": st.integers(1, 10**9),
    "max_num_queued_tokens": st.integers(1, 10**9),
    "safetensors_prefetch_block_size": st.integers(1, 10**9),
    "gpu_memory_utilization": st.floats(0, 1),
    "served_model_name": st.text("abc-/ 1", min_size=1).filter(lambda text: text[0] != "-"),
}
NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\ue000"), max_size=8).filter(
    lambda text: not NUMBER.fullmatch(text) and text[:1] not in {"{", "["}
)
NUMBERS = st.integers(-(10**17), 10**17) | st.floats(-1e15, 1e15).filter(
    lambda number: abs(number) > 1e-15
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text("ab.+ ", max_size=3), part),
    max_leaves=5,
).filter(lambda value: isinstance(value, dict | list))


def single(flag: Flag) -> st.SearchStrategy[Any]:
    """A value that the flag takes, as a spec that somebody wrote for it holds it."""
    if flag.name in TYPED:
        return TYPED[flag.name]
    if flag.kind in {"boolean", "switch"}:
        return st.booleans() if flag.kind == "boolean" else st.just(True)
    if flag.choices:
        return st.sampled_from(flag.choices)
    if flag.type:
        return st.integers(-99, 10**9) if flag.type == "int" else NUMBERS
    return TEXTS | NUMBERS | JSON


def values(flag: Flag) -> st.SearchStrategy[Any]:
    if flag.name == "served_model_name" or flag.kind not in {"list", "repeated"}:
        return single(flag)
    items = st.lists(single(flag), min_size=1, max_size=3)
    return items.filter(lambda many: len(many) == 1 or not any(map(dashed, many)))


def dashed(item: Any) -> bool:
    """Whether vLLM would not take the item for one of a list."""
    return str(item).startswith("-") and not re.fullmatch(r"-\d+", str(item))


served = st.lists(st.sampled_from(SERVED), unique_by=lambda flag: flag.name, max_size=6).flatmap(
    lambda chosen: st.fixed_dictionaries({flag.name: values(flag) for flag in chosen})
)
parallel = st.fixed_dictionaries(
    {},
    optional={
        "tensor": st.integers(1, 16),
        "pipeline": st.integers(1, 16),
        "data": st.integers(1, 16),
        "expert": st.booleans(),
        "prefill_context": st.integers(1, 4),
        "decode_context": st.integers(1, 4),
        "layers": st.lists(st.integers(0, 99), min_size=1, max_size=4),
    },
)
model = st.fixed_dictionaries(
    {"id": st.from_regex(r"[A-Za-z][\w./ '-]{0,20}", fullmatch=True)},
    optional={
        "dtype": st.sampled_from(["auto", "float16", "bfloat16", "float32"]),
        "quantization": st.sampled_from(["fp8", "awq", "auto"]),
        "revision": st.sampled_from(["main", "auto", "-1", "v1.0"]),
    },
)
environment = st.dictionaries(
    st.from_regex(r"NCCL_[A-Z]{1,5}|VLLM_[A-Z]{1,4}_X", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\ue000"), max_size=6)
    | st.fixed_dictionaries(
        {"from_env": st.from_regex(r"[A-Za-z_][A-Z0-9a-z_]{0,5}", fullmatch=True)}
    ),
    max_size=2,
)


def spec(data: Mapping[str, Any]) -> Spec:
    base = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}}
    return Spec.model_validate({**base, **data})


def read(command: str | Sequence[str], **hardware: Any) -> SpecData:
    return spec_from_command(command, "cpu", **hardware)


def back(command: str | Sequence[str]) -> Spec:
    return Spec.model_validate(read(command, devices_per_node=1, nodes=1).data)


@settings(max_examples=300)
@given(model=model, parallel=parallel, serve=served, env=environment)
def test_from_a_spec_to_the_line_and_back(
    model: dict[str, Any], parallel: dict[str, Any], serve: dict[str, Any], env: dict[str, Any]
) -> None:
    """Nothing is lost: as words, and as the line that a person types into a shell."""
    before = spec({"model": model, "parallel": parallel, "serve": {**serve, "env": env}})
    after = back(shell_command(before))
    assert (after.model, after.parallel, after.serve) == (
        before.model,
        before.parallel,
        before.serve,
    )
    words = back(["vllm", "serve", before.model.id, *flags(before)])
    assert words.model == before.model
    assert words.serve.model_extra == before.serve.model_extra


def written(flag: Flag, value: Any) -> list[str]:
    """The words by which vLLM's parser takes `value`."""
    option = "--" + flag.name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else "--no-" + option[2:]]
    texts = [text(item) for item in (value if flag.kind in {"list", "repeated"} else [value])]
    if flag.kind == "list" and len(texts) > 1:
        return [option, *texts]
    return [f"{option}={each}" for each in texts]


def text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@settings(max_examples=300)
@given(served, st.data())
def test_from_a_line_to_the_spec_and_back(serve: dict[str, Any], data: st.DataObject) -> None:
    """However the options are spelled, the same ones come out."""
    line, expected = ["vllm", "serve", "m"], []
    for name, value in serve.items():
        flag = vllm_flags()[name]
        words = written(flag, [value] if name == "served_model_name" else value)
        expected += words
        line += data.draw(st.sampled_from(list(spellings(flag, words))))
    assert sorted(flags(back(line))) == sorted(expected)


def spellings(flag: Flag, words: list[str]) -> Sequence[list[str]]:
    """The same option by its alias, with underscores, and with its value as a word of its own."""
    option, joined, value = words[0].partition("=")
    ways = [words, [option.replace("-", "_").replace("__", "--", 1) + joined + value, *words[1:]]]
    if len(words) == 1 and not option.startswith("--no-"):
        ways += [[alias + joined + value] for alias in flag.aliases]
    if len(words) == 1 and joined and (not value.startswith("-") or re.fullmatch(r"-\d+", value)):
        ways.append([option, value])
    return ways


@pytest.mark.parametrize("flag", SERVED, ids=lambda flag: flag.name)
@settings(max_examples=5)
@given(data=st.data())
def test_every_flag_of_vllm(flag: Flag, data: st.DataObject) -> None:
    """Each one comes back as it was, whatever it takes."""
    before = spec({"serve": {flag.name: data.draw(values(flag))}})
    after = back(["vllm", "serve", "m", *flags(before)])
    assert after.serve == before.serve


@pytest.mark.parametrize("name", sorted({*MODEL_FLAGS, *PARALLEL_FLAGS}))
def test_what_has_its_own_place(name: str) -> None:
    """The strategy and the model's flags are said where the spec wants them."""
    flag = vllm_flags()[name]
    value = [] if flag.kind == "boolean" else ["half" if name == "dtype" else "2"]
    found = read(["vllm", "serve", "m", "--" + name, *value]).data
    section = "model" if name in MODEL_FLAGS else "parallel"
    expected = {"dtype": "float16", "enable_expert_parallel": True}.get(name, value and value[0])
    key = PARALLEL_FLAGS.get(name, name)
    assert str(found[section][key]) == str(expected)
    assert "serve" not in found


PUBLISHED = r"""
HF_TOKEN=hf_abc NCCL_DEBUG=INFO VLLM_PP_LAYER_PARTITION=41,39 nohup \
  /opt/venv/bin/vllm serve meta-llama/Meta-Llama-3-70B-Instruct -tp 8 -pp=2 --dtype half \
    --max-model-len 16k --max_num_batched_tokens=8K --kv-cache-memory-bytes 1.5g \
    --gpu-memory-util .9 --no-enable-prefix-caching --enforce-eager -O2 \
    --compilation-config.mode 3 --compilation-config.pass_config.fuse_norm_quant=true \
    --compilation-config.cudagraph_capture_sizes+=1,2 \
    --compilation-config.cudagraph_capture_sizes+ 4 \
    --speculative-config '{"method": "ngram", "num_speculative_tokens": 4}' \
    --middleware a.b --middleware c.d --allowed-media-domains x.org y.org \
    --host 0.0.0.0 --port 8080 --api-key "$KEY" --served-model-name llama
"""


def test_a_line_as_people_write_it() -> None:
    """Everything arrives at its place; what is left out is noted, and no secret is written."""
    found = read(PUBLISHED)
    assert found.data == {
        "version": 1,
        "model": {"id": "meta-llama/Meta-Llama-3-70B-Instruct", "dtype": "float16"},
        "hardware": {"device": "cpu", "devices_per_node": 8, "nodes": 2},
        "parallel": {"tensor": 8, "pipeline": 2, "layers": [41, 39]},
        "serve": {
            "max_model_len": 16_000,
            "max_num_batched_tokens": 8192,
            "kv_cache_memory_bytes": 1_500_000_000,
            "gpu_memory_utilization": 0.9,
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "optimization_level": 2,
            "compilation_config": {
                "mode": 3,
                "pass_config": {"fuse_norm_quant": True},
                "cudagraph_capture_sizes": ["1", "2", "4"],
            },
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 4},
            "middleware": ["a.b", "c.d"],
            "allowed_media_domains": ["x.org", "y.org"],
            "served_model_name": "llama",
            "env": {"HF_TOKEN": {"from_env": "HF_TOKEN"}, "NCCL_DEBUG": "INFO"},
        },
    }
    heads = [note.partition(":")[0] for note in found.notes]
    assert heads == ["HF_TOKEN", "left out --host", "left out --port", "left out --api-key"]
    assert "hf_abc" not in repr(found)
    assert Spec.model_validate(found.data).parallel.layers == (41, 39)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve org/m --seed 1",
        "vllm serve --seed 1 --model org/m",
        "vllm serve --seed 1 org/m",
        "python3 -m vllm.entrypoints.openai.api_server --model org/m --seed=1",
        "/usr/bin/env vllm serve 'org/m' --se\\\ned 1",
        "vllm/vllm-openai:v0.32.0 --model org/m --seed 1",
        ["vllm", "serve", "org/m", "--seed", "1"],
    ],
)
def test_the_programs_of_a_server(line: str | list[str]) -> None:
    """The command, the module and the image are the same server."""
    found = read(line)
    assert (found.data["model"], found.data["serve"]) == ({"id": "org/m"}, {"seed": 1})
    assert found.notes == ()


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("uv run vllm serve m", "left out what stands before the server: uv run"),
        ("docker run --gpus all vllm/vllm-openai --model m", "before the server: docker run"),
        ("vllm serve m --seed 1 --seed 2", "--seed is given twice: the last one counts"),
        ("vllm serve m --max-model-len auto", "vLLM chooses the length"),
        ("vllm serve m --served-model-name a b", "left out all but the first name: b"),
        ("vllm serve m --config c.yaml", "what c.yaml says is not in the spec"),
        ("vllm serve m --hf-token", "left out --hf-token: a secret"),
        ("vllm serve m --uds /tmp/x", "left out --uds: the gate talks to the server over TCP"),
        ("VLLM_API_KEY=k vllm serve m", "VLLM_API_KEY: a secret is not written"),
    ],
)
def test_nothing_is_left_out_silently(line: str, note: str) -> None:
    """What the spec does not hold, or holds otherwise, is noted; the rest is a valid spec."""
    found = read(line)
    assert len(found.notes) == 1
    assert note in found.notes[0]
    assert Spec.model_validate(found.data).model.id == "m"


def test_a_length_that_vllm_chooses_is_still_said() -> None:
    """It has no place under `serve`, and travels as an extra argument."""
    assert flags(back("vllm serve m --max-model-len -1")) == ["--max-model-len=-1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"^found '': write `vllm serve MODEL"),
        ("vllm chat", r"^found 'vllm chat': write `vllm serve MODEL"),
        ("sglang serve m", r"^found 'sglang serve': write"),
        ("vllm serve", r"^the line names no model"),
        ("vllm serve m n", r"^found 'n' beside the model 'm'"),
        ("vllm serve m --model n", r"^found 'n' beside the model 'm'"),
        ("vllm serve m --enforce-eager true", r"^found 'true' beside the model 'm'"),
        ("vllm serve m --enforce-eager=true", r"^--enforce-eager: takes no value, found 'true'"),
        ("vllm serve m --tensor-paralel-size 2", r"did you mean '--tensor-parallel-size'\?$"),
        ("vllm serve m --swap-spce 2", r"^vLLM has no flag --swap-spce: "),
        ("vllm serve m --enable-p", r"^--enable-p is not clear: it may be --enable-p"),
        ("vllm serve m --seed", r"^--seed: a value must follow$"),
        ("vllm serve m --watermark -1.5", r"^--watermark: a value must follow$"),
        ("vllm serve m --seed --enforce-eager", r"^--seed: a value must follow$"),
        ("vllm serve m --seed 1.5", r"^--seed: found '1.5': write a whole number$"),
        ("vllm serve m --watermark inf", r"^--watermark: found 'inf': write a number$"),
        ("vllm serve m --max-model-len 1.5K", r"^--max-model-len: found '1.5K': write a whole"),
        ("vllm serve m --max-lora-rank 7", r"found '7': write one of 1, 8, 16"),
        ("vllm serve m --load-format.x 1 -tp.y 2", r"^-tp.y: -tp takes no keys$"),
        ("vllm serve m --kv-cache-dtype fp9", r"found 'fp9': did you mean 'fp8'\?$"),
        ("vllm serve m -cc {} -cc.mode 1", r"^-cc.mode: write all of this value in one form"),
        ("vllm serve m -cc.mode 1 -cc {}", r"^-cc: write all of this value in one form"),
        ("vllm serve m -cc.mode 1 --compilation-config.b 1", r"in one form, whole or key by key"),
        ("vllm serve m -cc.mode 1e300", r"a spec does not hold such a value"),
        ("vllm serve m --load-format $FORMAT", r"^found '\$FORMAT': the shell's variables"),
        ("A=x$B vllm serve m", r"^found 'A=x\$B': the shell's variables are not known here"),
        ("vllm serve m > log", r"^found '>': give the one command"),
        ("vllm serve m &", r"^found '&': give the one command"),
        ("vllm serve 'm", r"^a quote of the line has no end"),
    ],
)
def test_what_is_not_a_line(line: str, message: str) -> None:
    """The error says where, what was found, and what is allowed."""
    with pytest.raises(CommandLineError, match=message):
        read(line)


def test_quotes_protect_from_the_shell() -> None:
    """What is in single quotes, or escaped, is only text."""
    found = read(
        r"""vllm serve m --chat-template '$A & "b" > \c' --load-format \$x --download-dir "a'$" """
    )
    assert found.data["serve"] == {
        "chat_template": r'$A & "b" > \c',
        "load_format": "$x",
        "download_dir": "a'$",
    }


@pytest.mark.parametrize(
    ("line", "hardware", "expected"),
    [
        ("vllm serve m", {}, (1, 1)),
        ("vllm serve m -tp 4", {}, (4, 1)),
        ("vllm serve m -tp 8 -pp 2", {}, (8, 2)),
        ("vllm serve m -tp 8 -pp 2 --nnodes 4", {}, (4, 4)),
        ("vllm serve m -tp 8 -dp 2", {"devices_per_node": 4}, (4, 4)),
        ("vllm serve m -tp 8 -dp 2", {"nodes": 1}, (16, 1)),
        ("vllm serve m -dp 16 -dpl 4", {}, (4, 4)),
        ("vllm serve m -tp 2", {"devices_per_node": 8, "nodes": 3}, (8, 3)),
    ],
)
def test_the_hardware(line: str, hardware: dict[str, int], expected: tuple[int, int]) -> None:
    """As many devices as the strategy takes, where nobody says another number."""
    found = read(line, **hardware).data["hardware"]
    assert (found["devices_per_node"], found["nodes"]) == expected


@given(st.text(st.sampled_from("vllm serve-tp={}'\"$\\x1 \n&;"), max_size=30))
def test_any_line_is_read_or_refused(line: str) -> None:
    """Whatever is given, there is a mapping or the one kind of error."""
    for command in (line, f"vllm serve {line}"):
        with suppress(CommandLineError):
            assert read(command).data["version"] == 1


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(served)
def test_vllm_reads_the_same_from_both(vllm_parser: Any, serve: dict[str, Any]) -> None:
    """For vLLM's own parser, the line and the line of its spec are one server."""
    words = [word for name in serve for word in written(vllm_flags()[name], listed(name, serve))]
    try:
        expected = vars(vllm_parser.parse_args(["m", *words]))
    except SystemExit:
        assume(False)
    found = flags(back(["vllm", "serve", "m", *words]))
    assert vars(vllm_parser.parse_args(["m", *found])) == expected


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "line",
    [
        "--max-model-len 16k --max_num_batched_tokens=8K --kv-cache-memory-bytes 1.5g -q None",
        "-tp 8 -pp=2 --dtype half --gpu-memory-util .9 -O2 --no-enable-prefix-caching -ep",
        "-O 3 --max-model-len auto --moe-backend Deep-GEMM --served-model-name=a",
        "-cc.mode 3 -cc.pass_config.fuse_norm_quant=true -cc.cudagraph_capture_sizes '[1, 2]'",
        "--hf-overrides.a.b 1k --hf-overrides.a.c+ x,y --hf-overrides.a.c+=z",
        """--hf-overrides '{"a":1}' -sc '{"method": "ngram", "num_speculative_tokens": 4}'""",
        """--middleware a --middleware b --lora-modules x=/y '{"name": "n", "path": "/p"}'""",
    ],
)
def test_vllm_reads_what_people_write(vllm_parser: Any, line: str) -> None:
    """Short, abbreviated, keyed and suffixed options are the same server for vLLM as their spec."""
    words = shlex.split(line)
    found = flags(back(["vllm", "serve", "m", *words]))
    assert found != words
    theirs, ours = (vars(vllm_parser.parse_args(["m", *each])) for each in (words, found))
    assert {key: str(value) for key, value in ours.items()} == {
        key: HALF.get(value, str(value)) if isinstance(value, str) else str(value)
        for key, value in theirs.items()
    }


# The spec has one name for what vLLM has two for.
HALF = {"half": "float16"}


def listed(name: str, serve: Mapping[str, Any]) -> Any:
    return [serve[name]] if name == "served_model_name" else serve[name]


@pytest.fixture(scope="module")
def vllm_parser() -> Any:
    """The argument parser of the vLLM that is installed."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser: Any = FlexibleArgumentParser
    return make_arg_parser(parser())
