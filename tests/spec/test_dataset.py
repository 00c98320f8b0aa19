"""A dataset is what its lines say, and whatever the file is, the answer comes soon."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.spec import dataset
from pytest_llmdeploy.spec.dataset import DatasetError, read_dataset

from .documents import load, workload

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
LINES = st.lists(
    st.fixed_dictionaries({"prompt": IDS | TEXTS}, optional={"output_tokens": st.integers(1, 99)}),
    min_size=1,
    max_size=20,
)
thoroughly = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, raw: bytes) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(raw)
    return path


@thoroughly
@given(LINES, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.booleans())
def test_what_is_written_is_read(
    tmp_path: Path, lines: list[dict[str, Any]], newline: str, marked: bool, ascii_only: bool
) -> None:
    """Prompts and counts come back in their order, from files of other systems, too."""
    text = newline.join(json.dumps(line, ensure_ascii=ascii_only) for line in lines)
    data = read_dataset(write(tmp_path, (b"\xef\xbb\xbf" if marked else b"") + text.encode()))
    assert [entry.text if entry.is_text else entry.ids for entry in data.entries] == [
        line["prompt"] for line in lines
    ]
    assert [entry.output_tokens for entry in data.entries] == [
        line.get("output_tokens") for line in lines
    ]
    known = [len(line["prompt"]) for line in lines if isinstance(line["prompt"], list)]
    assert [entry.input_tokens for entry in data.entries if not entry.is_text] == known
    assert data.longest == max(known, default=1)
    assert data.says_outputs is all("output_tokens" in line for line in lines)


@thoroughly
@given(st.lists(IDS.map(lambda ids: [i % 3 for i in ids]), min_size=1, max_size=6))
def test_what_all_prompts_share(tmp_path: Path, prompts: list[list[int]]) -> None:
    """As many ids as are equal at each place of each prompt."""
    lines = [json.dumps({"prompt": ids, "output_tokens": 1}) for ids in prompts]
    shared = 0
    while all(len(ids) > shared for ids in prompts) and len({ids[shared] for ids in prompts}) == 1:
        shared += 1
    data = read_dataset(write(tmp_path, "\n".join(lines).encode()))
    assert (data.shared_ids, data.shortest) == (shared, min(map(len, prompts)))


@thoroughly
@given(
    st.binary()
    | st.lists(
        st.sampled_from([b'{"prompt": "a"}', b"\n", b"{", b'"', b"[" * 9999, b"\xff", b"null",
                         b'{"prompt": [1e99]}', b'{"prompt": "\\ud800"}', b"\x00"])
    ).map(b"".join)
)  # fmt: skip
def test_any_bytes_are_a_dataset_or_are_refused(tmp_path: Path, raw: bytes) -> None:
    """With the file's name, and never anything else."""
    path = write(tmp_path, raw)
    with contextlib.suppress(DatasetError):
        assert read_dataset(path).entries
        return
    with pytest.raises(DatasetError, match=f"^{path}:"):
        read_dataset(path)


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes and by lines, before it is read as JSON."""
    with pytest.raises(DatasetError, match="larger than 33,554,432 bytes"):
        read_dataset(write(tmp_path, b"\n" * (dataset.MAX_BYTES + 1)))
    monkeypatch.setattr(dataset, "MAX_PROMPTS", 3)
    with pytest.raises(DatasetError, match="more than 3 prompts"):
        read_dataset(write(tmp_path, b'{"prompt": "a"}\n' * 4))


def test_the_largest_dataset_takes_seconds(tmp_path: Path) -> None:
    """A hundred thousand prompts of token ids."""
    line = json.dumps({"prompt": list(range(1000, 1050)), "output_tokens": 9}).encode() + b"\n"
    path = write(tmp_path, line * dataset.MAX_PROMPTS)
    started = time.process_time()
    assert len(read_dataset(path).entries) == dataset.MAX_PROMPTS
    assert time.process_time() - started < 5


def test_a_dataset_is_beside_its_spec(tmp_path: Path) -> None:
    """Its path is relative to the spec, and the plan sees its lengths."""
    (tmp_path / "data").mkdir()
    write(
        tmp_path / "data", b'{"prompt":[1,2],"output_tokens":4}\n{"prompt":[5],"output_tokens":9}'
    )
    text = workload("").replace("input_tokens: 8", "input_tokens: {dataset: data/prompts.jsonl}")
    (given_output,) = load(tmp_path, text).workloads
    (own_output,) = load(tmp_path, text.replace("output_tokens: 8", "seed: 1")).workloads
    assert (given_output.mean_input, given_output.mean_output, given_output.longest) == (1.5, 8, 10)
    assert (own_output.mean_input, own_output.mean_output, own_output.longest) == (1.5, 6.5, 10)


def test_texts_are_planned_with_an_estimate(tmp_path: Path) -> None:
    """Four bytes are a token until somebody counts; a declared count is taken."""
    lines = [{"prompt": "x" * 400}, {"prompt": "x", "input_tokens": 50}]
    data = read_dataset(write(tmp_path, "\n".join(map(json.dumps, lines)).encode()))
    assert data.mean_input == pytest.approx((100 + 50) / 2, abs=1)
    assert (data.shortest, data.longest) == (50, 50)
    assert math.isclose(data.mean_output, 1)
