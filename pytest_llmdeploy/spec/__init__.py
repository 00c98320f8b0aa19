"""The spec: YAML in, frozen typed records out, errors with file, line and key."""

from pytest_llmdeploy.spec.errors import (
    KeyPath,
    Problem,
    SpecError,
    closest,
    dotted,
    nearest,
    nearest_file,
)
from pytest_llmdeploy.spec.load import fault_text, load_spec, looks_like_spec
from pytest_llmdeploy.spec.model import Parallel, Spec
from pytest_llmdeploy.spec.schema import spec_schema
from pytest_llmdeploy.spec.source import Place, Source
from pytest_llmdeploy.spec.workload import Workload

__all__ = [
    "KeyPath",
    "Parallel",
    "Place",
    "Problem",
    "Source",
    "Spec",
    "SpecError",
    "Workload",
    "closest",
    "dotted",
    "fault_text",
    "load_spec",
    "looks_like_spec",
    "nearest",
    "nearest_file",
    "spec_schema",
]
