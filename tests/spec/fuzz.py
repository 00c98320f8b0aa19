"""Texts for the loader, most of them no specs: `python -m tests.spec.fuzz 10000` tries so many.

Whatever is in the file, the loader answers within a second of CPU time and 200 MB, with a spec or
with a SpecError that says where.
"""

from __future__ import annotations

import copy
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.checks import Registry, requirements
from pytest_llmdeploy.plan import plan
from pytest_llmdeploy.spec import Spec, SpecError
from pytest_llmdeploy.spec.document import read_document

from .documents import SMALLEST, load

SPECS = Path(__file__).parents[2] / "specs"
EXAMPLE = (SPECS / "llama3-70b-8xh100.yaml").read_text()
ELSEWHERE = SMALLEST + (
    "attach: {url: http://a:8000, engines: [http://b:8000], load: true, max_requests: 9,\n"
    "  probes: {dcgm: http://c, namespace: d, pod: e-*}}\n"
    "serve: {extra_args: [--seed=1], env: {A: '1', B: {from_env: B}}, startup_timeout: 9s}\n"
)
MOST_SECONDS, MOST_BYTES = 1.0, 200_000_000

TOKENS = st.sampled_from(
    ["version: 1", "model:", "{id: x}", "workloads:", "- ", "  ", "\n", "[", "]", "{", "}", ":",
     "&a", "*a", "!!str", "? ", "| ", "> ", "'", '"', "#", "---", "...", "%", "1e999", "1_", "012",
     "\x85", "\u2028", "\ufeff", "<<: ", "null", "9" * 4301]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", "null", "-1", "0", "1e999", "1" + "0" * 400, "9" * 5000, "nan", ".inf", "true", "[]", "{}",
     "[[]]", "{a: b}", "'", "&x 1", "*x", "!t 1", "x" * 5000, "1_", "-.5", "\u0661", "8/s", "5%",
     '"\\0"', '">=' + "9" * 5000 + '"', "/dev/zero", "/none/x", "../" * 50]
)  # fmt: skip
PLACES = [i for i, line in enumerate(EXAMPLE.splitlines()) if line.strip()]
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, -1, 0, 1, 10**17, 10**30, 0.5, 1e-300, 1e300, "", " ", "x" * 300, "\0",
     "\x1b[31m", "\u202eabc", "\ud800", "\U0001f600" * 70, "e\u0301", "1e999s", "-1s", "5%", "8/s",
     "500ms", "1e17GiB", "H100-SXM-80GB", "cpu", "p99", "/dev/zero", "/none/x", "x" * 5000, [], {},
     [[]], {"a": 1}, {"": None}, [1] * 500]
)  # fmt: skip
ANYTHING = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)
BASES = [
    read_document(path).data for path in sorted(SPECS.glob("*.yaml"))
] + [yaml.safe_load(ELSEWHERE)]  # fmt: skip


def _nodes(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key of it."""
    if isinstance(data, dict | list):
        for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
            yield data, key
            yield from _nodes(value)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid spec in which one thing is another."""
    data = copy.deepcopy(draw(st.sampled_from(BASES)))
    container, key = draw(st.sampled_from(list(_nodes(data))))
    match draw(st.sampled_from(["replace", "rename", "remove", "deepen", "repeat"])):
        case "rename" if isinstance(container, dict):
            near = st.sampled_from(
                [f"{key}s", str(key)[1:], str(key).upper(), f"{key} ", "x" * 999]
            )
            container[draw(near | st.text())] = container.pop(key)
        case "remove":
            del container[key]
        case "deepen":
            for _ in range(draw(st.integers(1, 40))):
                container[key] = draw(st.sampled_from([[container[key]], {"a": container[key]}]))
        case "repeat":
            container[key] = [container[key]] * draw(st.sampled_from([2, 50, 2000]))
        case _:
            container[key] = draw(ANYTHING)
    text = _dumped(data, draw(st.sampled_from([None, True, False])))
    lines = text.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["", "", "twice", "anchor", "alias"])):
        case "twice":
            lines.insert(at, lines[at])
        case "anchor":
            lines[at] = lines[at].replace(": ", ": &a ", 1)
        case "alias":
            lines[at] = lines[at].partition(": ")[0] + ": *a"
    return "\n".join(lines)


def _dumped(data: Any, style: bool | None) -> str:
    dumper: Any = yaml.SafeDumper
    dumper.ignore_aliases = lambda *_: True
    return yaml.dump(data, Dumper=dumper, default_flow_style=style, sort_keys=False)


@st.composite
def any_bytes(draw: st.DrawFn) -> bytes:
    """Bytes, or a text that may not even have an encoding."""
    text = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    return draw(st.binary() | text)


@st.composite
def pieces_of_yaml(draw: st.DrawFn) -> str:
    """YAML's own words in any order, after a valid beginning."""
    return SMALLEST + "".join(draw(st.lists(TOKENS, max_size=30)))


@st.composite
def value_replaced(draw: st.DrawFn) -> str:
    """The example with one value that is something else."""
    lines = EXAMPLE.splitlines()
    place = draw(st.sampled_from(PLACES))
    lines[place] = lines[place].partition(":")[0] + ": " + draw(VALUES)
    return "\n".join(lines)


@st.composite
def piece_replaced(draw: st.DrawFn) -> str:
    """The example with a piece cut out and something put in."""
    start, length = draw(st.integers(0, len(EXAMPLE))), draw(st.integers(0, 40))
    return EXAMPLE[:start] + draw(TOKENS | st.text()) + EXAMPLE[start + length :]


@st.composite
def extending(draw: st.DrawFn) -> str:
    """A spec over bases, some of which are odd: `bases` writes them."""
    names = st.sampled_from([*FAMILY, "spec.yaml", "none.yaml", "/dev/zero", "", ".", "x" * 5000])
    given = draw(names | st.lists(names, max_size=4) | ANYTHING)
    changes = draw(st.dictionaries(st.sampled_from([*Spec.model_fields]), ANYTHING, max_size=2))
    return _dumped({"version": 1, **changes, "extends": given}, None)


# A ladder, on which every step has two ways down; a circle; and what is no spec.
FAMILY = {
    "0.yaml": EXAMPLE,
    "1.yaml": "extends: 0.yaml\n",
    **{f"{n}.yaml": f"extends: [{n - 1}.yaml, {n - 2}.yaml]\n" for n in range(2, 15)},
    "circle.yaml": "extends: [0.yaml, circle.yaml]\n",
    "other.yaml": ELSEWHERE,
    "odd.yaml": "workloads: [{name: steady, rate: null}, 3]\nserve: 3\nmodel: [1]\n",
    "list.yaml": "- 1\n",
    "large.yaml": "a: " + "x" * 900_000,
    "long.yaml": "".join(f"k{number}: {{}}\n" for number in range(9_000)),
}


def bases(folder: Path) -> None:
    """Writes the files that `extending` names."""
    for name, text in FAMILY.items():
        (folder / name).write_text(text)


STRATEGIES: list[st.SearchStrategy[str] | st.SearchStrategy[bytes]] = [
    any_bytes(),
    pieces_of_yaml(),
    value_replaced(),
    piece_replaced(),
    mutated(),
    extending(),
]


def answered(folder: Path, text: str | bytes) -> Spec | SpecError:
    """The spec or the error, which took less than a second of CPU time and says where."""
    started = time.process_time()
    try:
        answer: Spec | SpecError = _loaded(folder, text)
    except SpecError as error:
        answer = error
    assert time.process_time() - started < MOST_SECONDS
    if isinstance(answer, SpecError):
        assert min(problem.line for problem in answer.problems) >= 1
        assert len(str(answer)) < 20_000
    return answer


def _loaded(folder: Path, text: str | bytes) -> Spec:
    """The spec, as it is collected: with what is to be checked on it."""
    spec = load(folder, text)
    requirements(spec, Registry())
    _ = spec.served_model
    return spec


@dataclass
class Record:
    """What was tried, and the most that it took; for a plan, which follows a valid spec, too."""

    cases: int = 0
    valid: int = 0
    seconds: float = 0.0
    slowest: str = ""
    memory: int = 0
    largest: str = ""
    planned: float = 0.0

    def tried(self, folder: Path, text: str | bytes) -> None:
        before, started = _start_of_peak(), time.process_time()
        answer = answered(folder, text)
        seconds, more = time.process_time() - started, _memory("VmHWM") - before
        assert more < MOST_BYTES, f"{more:,} bytes"
        self.cases += 1
        if seconds > self.seconds:
            self.seconds, self.slowest = seconds, repr(text[:100])
        if more > self.memory:
            self.memory, self.largest = more, repr(text[:100])
        if isinstance(answer, Spec):
            started = time.process_time()
            plan(answer).to_json()
            self.valid += 1
            self.planned = max(self.planned, time.process_time() - started)

    def __str__(self) -> str:
        return (
            f"{self.cases:,} cases, {self.valid:,} of them valid specs, no traceback\n"
            f"slowest  {self.seconds * 1000:,.0f} ms   {self.slowest}\n"
            f"largest  {self.memory / 1e6:,.1f} MB   {self.largest}\n"
            f"slowest plan of a valid one  {self.planned * 1000:,.0f} ms"
        )


def _memory(what: str) -> int:
    """This process's resident memory now (VmRSS), or at its most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def _start_of_peak() -> int:
    # proc(5): the peak begins anew from here.
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")


def main() -> None:
    """Tries as many texts as the first argument says."""
    wanted, record = int(sys.argv[1]), Record()
    resource.setrlimit(resource.RLIMIT_AS, (4 * 1024**3, resource.RLIM_INFINITY))
    how = settings(
        max_examples=-(-wanted // len(STRATEGIES)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with tempfile.TemporaryDirectory() as folder:
        bases(Path(folder))
        for strategy in STRATEGIES:

            @how
            @given(text=strategy)
            def tries(text: str | bytes) -> None:
                record.tried(Path(folder), text)

            tries()
    print(record)  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
