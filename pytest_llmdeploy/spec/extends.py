"""`extends`: a spec as what it says over what other files say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from pytest_llmdeploy.spec.document import MAX_BYTES, MAX_VALUES, Document, read_document
from pytest_llmdeploy.spec.errors import KeyPath, SpecError, nearest_file, written
from pytest_llmdeploy.spec.source import Place, Source

MAX_FILES = 16
# Each file has its own.
_NOT_INHERITED = ("name", "extends")
_NAMED = ("workloads",)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place; mappings and lists hold nodes. One that is `whole` took the place of
    something else, and nothing of a base is to be merged into it.
    """

    value: Any
    place: Place
    whole: bool = False


def merged(low: Node, high: Node, key: KeyPath = ()) -> Node:
    """`high` over `low`: mappings merge key by key, workloads by their names, everything else is
    replaced. A null replaces, too, and is dropped in the end. It does not matter which two of three
    are merged first.
    """
    if high.whole:
        return high
    both: dict[str, Node] | list[Node]
    if isinstance(low.value, dict) and isinstance(high.value, dict):
        both = _over(low.value, high.value, key)
    elif key == _NAMED and (lows := _by_name(low)) and (highs := _by_name(high)):
        both = list(_over(lows, highs, key).values())
    else:
        return replace(high, whole=True)
    return Node(both, high.place, low.whole)


def _over(low: Mapping[str, Node], high: Mapping[str, Node], key: KeyPath) -> dict[str, Node]:
    return {
        **low,
        **{
            name: merged(low[name], node, (*key, name)) if name in low else node
            for name, node in high.items()
        },
    }


def _by_name(workloads: Node) -> Mapping[str, Node]:
    """Entries that all have a name of their own; empty where some have none."""
    entries = workloads.value if isinstance(workloads.value, list) else []
    named: dict[str, Node] = {}
    for entry in entries:
        name = entry.value.get("name") if isinstance(entry.value, dict) else None
        if not name or not isinstance(name.value, str):
            return {}
        named[name.value] = entry
    return named if len(named) == len(entries) else {}


def read_extended(path: Path) -> Document:
    """The document in `path` over those that it extends, as if it were one file in its folder. A
    base that is reached in several ways counts once, where it is first.

    Raises:
        SpecError: when one of the files can't be read, or they are no mappings, too many, too
            large, or go round in a circle.
    """
    reader = _Reader()
    top = read_document(path)
    reader.read(top, ())
    if len(reader.documents) == 1:
        return top
    files = [document.source for document in reader.documents.values()]
    data, places = plain(reduce(merged, map(_own, reader.documents.values())), path.parent)
    source = Source(path, places, tuple(file.path for file in files))
    if len(places) > MAX_VALUES:
        raise SpecError([source.problem(("extends",), _too_many(MAX_VALUES, "values"))])
    for key in _NOT_INHERITED:
        if key in top.data:
            data[key] = top.data[key]
            places.update({at: line for at, line in top.source.places.items() if at[:1] == (key,)})
    return Document(data, source, top.size)


@dataclass
class _Reader:
    """What was read so far, by the files' true paths; a base comes before who extends it."""

    documents: dict[str, Document] = field(default_factory=dict)
    begun: int = 0
    size: int = 0

    def read(self, document: Document, above: tuple[str, ...]) -> None:
        """Takes a file with what it extends; `above` are those that wait for it."""
        if not isinstance(document.data, dict):
            message = "a spec is a mapping that begins with `version: 1`"
            raise SpecError([document.source.problem((), message)])
        identity = _identity(document.source.path)
        self.begun, self.size = self.begun + 1, self.size + document.size
        for key, name in _named_files(document):
            self._base(document, key, name, (*above, identity))
        self.documents[identity] = document

    def _base(self, document: Document, key: KeyPath, name: str, above: tuple[str, ...]) -> None:
        named = document.source.path.parent / name
        # Unlike a Path it answers for any text, even one that can't be a name.
        if not os.path.isfile(named):  # noqa: PTH113
            message = f"there is no file {name!r}{nearest_file(named)}"
            raise SpecError([document.source.problem(key, message)])
        identity = _identity(named)
        if identity in above:
            circle = [*above[above.index(identity) :], identity]
            message = f"goes round in a circle: {' → '.join(Path(one).name for one in circle)}"
            raise SpecError([document.source.problem(key, message)])
        if identity in self.documents:
            return
        if self.begun == MAX_FILES:
            raise SpecError([document.source.problem(key, _too_many(MAX_FILES, "files"))])
        # Told as the spec itself is: from here, or from the root.
        base = read_document(Path(identity if named.is_absolute() else os.path.relpath(identity)))
        if self.size + base.size > MAX_BYTES:
            raise SpecError([document.source.problem(key, _too_many(MAX_BYTES, "bytes"))])
        self.read(base, above)


def _own(document: Document) -> Node:
    """What a file itself says, to be merged."""
    data = {key: value for key, value in document.data.items() if key not in _NOT_INHERITED}
    return _node(data, (), document.source)


def _too_many(most: int, what: str) -> str:
    return f"the spec and what it extends have more than {most:,} {what}"


def _named_files(document: Document) -> Iterator[tuple[KeyPath, str]]:
    """The files that a document extends, and where it says so."""
    given = document.data.get("extends", [])
    named = enumerate(given) if isinstance(given, list) else [(None, given)]
    for index, name in named:
        key: KeyPath = ("extends",) if index is None else ("extends", index)
        if not isinstance(name, str) or not name:
            message = f"found {written(name)}: write a file, or a list of files"
            raise SpecError([document.source.problem(key, message)])
        yield key, name


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _node(value: Any, key: KeyPath, source: Source) -> Node:
    if isinstance(value, dict):
        value = {name: _node(one, (*key, name), source) for name, one in value.items()}
    elif isinstance(value, list):
        value = [_node(one, (*key, index), source) for index, one in enumerate(value)]
    return Node(value, source.place(key))


def plain(node: Node, folder: Path = Path()) -> tuple[Any, dict[KeyPath, Place]]:
    """The data of a node with its places; paths are seen from `folder`."""
    places: dict[KeyPath, Place] = {}
    return _plain(node, (), places, folder), places


def _plain(node: Node, key: KeyPath, places: dict[KeyPath, Place], folder: Path) -> Any:
    """The data of a node, without the nulls that removed something, and its places."""
    places[key] = node.place
    if isinstance(node.value, dict):
        return {
            name: _plain(one, (*key, name), places, folder)
            for name, one in node.value.items()
            if not (one.whole and one.value is None)
        }
    if isinstance(node.value, list):
        return [_plain(o, (*key, i), places, folder) for i, o in enumerate(node.value)]
    if isinstance(node.value, str) and _is_path(key, node):
        return _seen_from(folder, node.place.path.parent, node.value)
    return node.value


def _is_path(key: KeyPath, node: Node) -> bool:
    """Whether a text is a path, which is relative to the file that has it."""
    if key == ("model", "id"):
        return os.path.isfile(node.place.path.parent / node.value / "config.json")  # noqa: PTH113
    in_dataset = key[0] == "workloads" and key[-1] == "dataset"
    return key == ("model", "config") or key[0] == "checks" or in_dataset


def _seen_from(folder: Path, other: Path, name: str) -> str:
    """The path `name`, which is relative to the folder `other`, from `folder`."""
    there, here = os.path.realpath(other), os.path.realpath(folder)
    if Path(name).is_absolute() or there == here:
        return name
    return os.path.relpath(f"{there}/{name}", here)
