"""YAML that the spec's own reader reads as it was meant: texts in quotes unless they are words."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pytest_llmdeploy.cli import RefusedError
from pytest_llmdeploy.spec import Spec, SpecError, load_spec

_WORD = re.compile(r"[A-Za-z_/][\w./@+-]*", re.ASCII)
_NOT_TEXTS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_UNBROKEN = 10_000


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - of the base class
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_word = _WORD.fullmatch(text) and text.lower() not in _NOT_TEXTS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_word else '"')


_Dumper.add_representer(str, _text)


def yaml_text(data: Mapping[str, Any]) -> str:
    """`data` with a line for every key of it and of its sections; what is deeper is in one line
    where it holds no further list or mapping.
    """
    dumper = _Dumper(io.StringIO(), default_flow_style=None, sort_keys=False)
    root = dumper.represent_data(dict(data))
    for node in [root, *(section for _, section in root.value)]:
        if isinstance(node, yaml.MappingNode) and node.value:
            node.flow_style = False
    text: str = yaml.serialize(root, Dumper=_Dumper, allow_unicode=True, width=_UNBROKEN)
    return text


def loaded(text: str) -> Spec:
    """The spec that `text` is.

    Raises:
        RefusedError: when it is none; the text says why, key by key.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return load_spec(path)
        except SpecError as error:
            faults = (f"{fault.key}: {fault.message}" for fault in error.problems)
            raise RefusedError("; ".join(faults)) from None
