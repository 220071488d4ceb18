"""Reads YAML into plain data and remembers the line and column of every key and value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import yaml

Path = tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """A place in a text: line and column count from 1; `text` is the whole line."""

    source: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"

    def picture(self) -> str:
        """The source line with a caret under the place."""
        return f"    {self.text}\n    {' ' * (self.column - 1)}^"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config: where it was said, which key, and what was expected.

    `at` is a Mark in a file, or the name of what set the value (an environment variable, a flag).
    """

    at: Mark | str
    path: Path
    message: str

    def __str__(self) -> str:
        where = f"{self.at}: {'.'.join(self.path)}: " if self.path else f"{self.at}: "
        picture = f"\n{self.at.picture()}" if isinstance(self.at, Mark) else ""
        return f"{where}{self.message}{picture}"


@dataclass
class Document:
    """A YAML mapping as plain data, with the place of each key and value, and what was wrong in it."""

    data: dict[str, object] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def shown(value: object) -> str:
    """A value as it would stand in the file: "two", 3, true, null, a mapping."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def read_document(text: str, source: str) -> Document:
    """Parse one YAML document whose root is a mapping. Never raises: problems are collected."""
    found = _read(text, source, lambda: [yaml.compose(text, Loader=yaml.SafeLoader)])
    return found[0] if found else Document()


def read_documents(text: str, source: str) -> list[Document]:
    """The same for a stream of documents, as Kubernetes takes it; empty ones are left out."""
    return _read(text, source, lambda: list(yaml.compose_all(text, Loader=yaml.SafeLoader)))


def _read(text: str, source: str, parse: Callable[[], Sequence[yaml.Node | None]]) -> list[Document]:
    lines = text.splitlines()

    def mark(at: yaml.Mark) -> Mark:
        return Mark(source, at.line + 1, at.column + 1, lines[at.line] if at.line < len(lines) else "")

    try:
        roots = parse()
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        at = mark(place) if place else source
        return [Document(problems=[Problem(at, (), f"not valid YAML: {message}")])]
    except RecursionError:
        return [Document(problems=[Problem(source, (), "not valid YAML: nested too deeply")])]
    except yaml.YAMLError as error:
        return [Document(problems=[Problem(source, (), f"not valid YAML: {' '.join(str(error).split())}")])]
    return [_document(root, mark) for root in roots if root is not None]


def _document(root: yaml.Node, mark: Callable[[yaml.Mark], Mark]) -> Document:
    document = Document(values={(): mark(root.start_mark)})
    if not isinstance(root, yaml.MappingNode):
        document.problems.append(Problem(mark(root.start_mark), (), "expected a mapping of sections"))
        return document
    reader = _Reader(document, mark)
    document.data = reader.mapping(root, ())
    return document


class _Unreadable(Exception):
    """A value that was reported already and is left out, so that it is not reported again as missing."""


class _Reader:
    """Walks a node tree once, building data, places and problems."""

    def __init__(self, document: Document, mark: Callable[[yaml.Mark], Mark]) -> None:
        self.document = document
        self.mark = mark
        self.open: set[int] = set()

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, path, "expected a name as key")
                continue
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:str":
                merge = " (merge keys are not supported: write the values out)" if key == "<<" else ""
                self.problem(key_node, path, f"expected a name as key, got {key}{merge}")
                continue
            inner = (*path, key)
            if key in data:
                first = self.document.keys[inner]
                self.problem(key_node, inner, f"key is given twice, first in line {first.line}")
                continue
            self.document.keys[inner] = self.mark(key_node.start_mark)
            with suppress(_Unreadable):
                data[key] = self.value(value_node, inner)
        return data

    def value(self, node: yaml.Node, path: Path) -> object:
        self.document.values[path] = self.mark(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.open:
            self.problem(node, path, "an alias must not contain itself")
            raise _Unreadable
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, str(i))) for i, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        constructor = yaml.constructor.SafeConstructor()
        try:
            return constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            self.problem(node, path, f"not a plain value: {problem}")
            raise _Unreadable from None

    def problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.document.problems.append(Problem(self.mark(node.start_mark), path, message))


def leaves(data: dict[str, object], path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every value that is no mapping, with its path; empty mappings count as values."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value
