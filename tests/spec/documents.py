"""Spec texts for tests: the smallest one, and that one with something added or changed."""

from pathlib import Path

from pytest_llmdeploy.spec import Spec, load_spec

SMALLEST = "version: 1\nmodel: {id: org/model}\nhardware: {device: cpu}\n"
LOAD = "workloads: [{name: a, input_tokens: 8, output_tokens: 8, rate: 1/s}]\n"


def workload(text: str, loop: str = "rate: 1/s") -> str:
    """The smallest spec with one workload, `text` being further keys of it."""
    lines = ["name: a", "input_tokens: 8", "output_tokens: 8", loop, *text.splitlines()]
    return SMALLEST + "workloads:\n  - " + "\n    ".join(line for line in lines if line) + "\n"


def load(folder: Path, text: str | bytes) -> Spec:
    """The spec that the file spec.yaml with this text is."""
    path = folder / "spec.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return load_spec(path)
