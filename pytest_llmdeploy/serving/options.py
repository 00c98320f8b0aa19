"""The options of a `vllm serve` line, each with the flag that it means and its value.

Reads what vLLM's own parser reads (utils/argparse_utils.py: FlexibleArgumentParser): both
spellings of a name, unique beginnings of it, short options, keys of JSON values one by one.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pytest_llmdeploy.facts import Flag, vllm_flags
from pytest_llmdeploy.serving.command import MODEL_FLAGS, is_option
from pytest_llmdeploy.spec import nearest

# Stands for a dollar sign that the shell would act upon; one in single quotes is just that.
LIVE = "\ue000"
CHOSEN_BY_VLLM = -1

# engine/arg_utils.py: human_readable_int_args.
_SIZES = {
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "kv_cache_memory_bytes",
    "safetensors_prefetch_block_size",
    "max_num_queued_tokens",
}
_SIZE = re.compile(r"(\d+)(\.\d+)?([kKmMgGtT])", re.ASCII)
_POWERS: dict[str, int] = {"k": 1, "m": 2, "g": 3, "t": 4}
_NUMBER = re.compile(r"-?\d{1,18}(\.\d+)?(e[+-]?\d{1,2})?", re.ASCII)
# What a YAML file of ours reads as it was written; other JSON stays a text.
_DEEPEST, _HIGHEST, _FARTHEST = 16, 10**18, 1e98
_NOTHING = {"", "None"}


class CommandLineError(Exception):
    """A line that is not a vLLM server's; the text says where, and what is allowed."""


def unknown_variable(found: str) -> CommandLineError:
    return CommandLineError(
        f"found {found.replace(LIVE, '$')!r}: the shell's variables are not known here, "
        "write the value"
    )


@dataclass(frozen=True)
class Given:
    """One option of the line: as it is written, the flag that it means, and its values."""

    option: str
    flag: Flag
    texts: tuple[str, ...] = ()
    is_on: bool = True
    path: tuple[str, ...] = ()

    def error(self, message: str) -> CommandLineError:
        return CommandLineError(f"{self.option}: {message}")


@cache
def _options() -> Mapping[str, tuple[Flag, bool]]:
    """Every option that vLLM has: the flag that it sets, and whether it sets or clears it."""
    found = {}
    for flag in vllm_flags().values():
        name = flag.name.replace("_", "-")
        found.update(dict.fromkeys([f"--{name}", *flag.aliases], (flag, True)))
        if flag.kind == "boolean":
            found[f"--no-{name}"] = (flag, False)
    return found


def given_options(arguments: Iterable[str]) -> Iterator[Given | str]:
    """The options with their values, and what stands alone."""
    rest = deque(arguments)
    while rest:
        if LIVE in (word := rest.popleft()):
            raise unknown_variable(word)
        if not is_option(word):
            yield word
            continue
        option, joined, text = _long(word).partition("=")
        flag, is_on, path = _meant(option)
        given = Given(option, flag, (text,) if joined else (), is_on, path)
        if flag.kind in {"boolean", "switch"}:
            if joined:
                raise given.error(f"takes no value, found {text!r}")
        elif not joined:
            given = replace(given, texts=tuple(_following(given, rest)))
        yield given


def _long(word: str) -> str:
    """`-O3` by its long name; any other option as it is."""
    if not word.startswith("-O"):
        return word
    level = word[2:].removeprefix("=")
    return f"--optimization-level={level}" if level else "--optimization-level"


def _following(given: Given, rest: deque[str]) -> Iterator[str]:
    """The values that belong to the option: one, or for a list all up to the next option."""
    if not rest or is_option(rest[0]):
        if given.flag.name == "hf_token":
            return
        raise given.error("a value must follow")
    yield rest.popleft()
    while given.flag.kind == "list" and rest and not is_option(rest[0]):
        yield rest.popleft()


def _meant(option: str) -> tuple[Flag, bool, tuple[str, ...]]:
    """The flag of an option, whether it is set or cleared, and the key within its value."""
    head, *path = option.split(".")
    if head.startswith("--"):
        head = head.replace("_", "-")
    known = _options()
    found = [head] if head in known else [name for name in known if name.startswith(head)]
    if len({known[name][0].name for name in found}) > 1:
        raise CommandLineError(f"{option} is not clear: it may be {', '.join(sorted(found)[:8])}")
    if not found:
        raise CommandLineError(f"vLLM has no flag {option}: {nearest(head, known)}")
    flag, is_on = known[found[0]]
    if path and (flag.kind != "value" or flag.type or flag.choices):
        raise CommandLineError(f"{option}: {found[0]} takes no keys")
    return flag, is_on, tuple(path)


def value_of(given: Given) -> Any:
    if not given.texts:
        return given.is_on
    if given.flag.kind == "list":
        return [_read(given, text) for text in given.texts]
    return _read(given, given.texts[0])


def _read(given: Given, text: str) -> Any:
    """The value that vLLM makes of `text`; None where it says to take the default."""
    flag = given.flag
    if LIVE in text:
        raise unknown_variable(text)
    try:
        if flag.name in _SIZES:
            return None if text in _NOTHING else _size(flag.name, text)
        if flag.type:
            return _number(given, text)
    except ValueError:
        wanted = "a number" if flag.type == "float" else "a whole number"
        raise given.error(f"found {text!r}: write {wanted}") from None
    if flag.choices:
        return _chosen(given, text)
    if flag.name in {*MODEL_FLAGS, "served_model_name"}:
        return None if text in _NOTHING else text
    return _plain(text)


def _number(given: Given, text: str) -> float:
    choices = given.flag.choices
    is_whole = given.flag.type == "int" or text.removeprefix("-").isdecimal()
    value = int(text) if is_whole else float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    if choices and value not in choices:
        raise given.error(f"found {text!r}: write one of {', '.join(map(str, choices))}")
    return value


def _size(name: str, text: str) -> int:
    """A number of tokens or bytes: 16k is 16,000, and 16K is 16,384."""
    if name == "max_model_len" and text.lower() == "auto":
        return CHOSEN_BY_VLLM
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return int(text)
    whole, part, unit = match.groups()
    scale: int = (1000 if unit.islower() else 1024) ** _POWERS[unit.lower()]
    if part and unit.islower():
        return int(float(whole + part) * scale)
    # Parts of a binary unit are an error to vLLM, and so they are here.
    return int(whole + (part or "")) * scale


def _chosen(given: Given, text: str) -> Any:
    choices = given.flag.choices
    # Of some, vLLM also takes other spellings; of some, None.
    folded = text.lower().replace("-", "_")
    if text in choices or text in _NOTHING or folded in choices:
        return text
    raise given.error(f"found {text!r}: {nearest(text, map(str, choices), len(choices))}")


def _plain(text: str) -> Any:
    """The number or the JSON that `text` is, if a spec holds it and it is printed as it was."""
    if _NUMBER.fullmatch(text):
        value = float(text) if {".", "e"} & set(text) else int(text)
        return value if repr(value) == text and _fits(value) else text
    if text[:1] in {"{", "["}:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return data if _fits(data) else text
    return text


def _fits(value: Any, depth: int = 0) -> bool:
    """Whether a spec file holds this JSON value as it is."""
    if isinstance(value, dict | list):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < _DEEPEST and all(_fits(part, depth + 1) for part in parts)
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)
    if isinstance(value, int):
        return abs(value) < _HIGHEST
    return not isinstance(value, float) or not value or 1 / _FARTHEST < abs(value) < _FARTHEST


def keyed(given: Given) -> dict[str, Any]:
    """The value of `--flag.a.b 1`: {"a": {"b": 1}}; with a plus at the end, a list."""
    (text,), (*path, last) = given.texts, given.path
    if LIVE in text:
        raise unknown_variable(text)
    value: Any = text
    if last.endswith("+"):
        last, value = last[:-1], text.split(",")
    else:
        try:
            value = json.loads(text)
        except ValueError:
            value = _size("", text) if _SIZE.fullmatch(text) else text
    if not _fits(value):
        raise given.error(f"found {text!r}: a spec does not hold such a value")
    for key in (last, *reversed(path)):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            into[key] = old + value
        else:
            into[key] = value
