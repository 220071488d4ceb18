"""One object of a manifest file: its data, and where each part of it was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config_yaml import Document, Mark, Path, Problem, read_documents

Found = tuple[Path, str]
"""What a check finds: a path inside the object, and what is wrong there."""


@dataclass(frozen=True)
class Manifest:
    """A document with an apiVersion and a kind; `lines` are those of its whole file."""

    document: Document
    lines: Sequence[str] = ()

    @property
    def data(self) -> dict[str, Any]:
        return self.document.data

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", ""))

    @property
    def group(self) -> str:
        """The API group with its version, as written."""
        return str(self.data.get("apiVersion", ""))

    @property
    def metadata(self) -> dict[str, Any]:
        return mapping(self.data, "metadata")

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", ""))

    def mark(self, path: Path) -> Mark:
        """Where the key of `path` stands, or the nearest thing around it that was written."""
        for end in range(len(path), 0, -1):
            for places in (self.document.keys, self.document.values):
                if path[:end] in places:
                    return places[path[:end]]
        return self.document.values[()]

    def problems(self, found: Iterable[Found]) -> Iterator[Problem]:
        for path, message in found:
            yield Problem(self.mark(path), path, message)


def read(text: str, source: str) -> tuple[list[Manifest], list[Problem]]:
    """The objects of a YAML stream, and what is wrong with its YAML."""
    documents = read_documents(text, source)
    problems = [problem for document in documents for problem in document.problems]
    lines = text.splitlines()
    manifests = [Manifest(document, lines) for document in documents if document.data]
    for manifest in manifests:
        missing = [key for key in ("apiVersion", "kind") if not isinstance(manifest.data.get(key), str)]
        problems += manifest.problems(((), f"{key} is missing") for key in missing)
    complete = [m for m in manifests if m.kind and m.group]
    return complete, problems


def mapping(data: object, *path: str) -> dict[str, Any]:
    """The mapping at a path, {} if there is none."""
    for step in path:
        data = data.get(step) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def items(data: object, *path: str) -> list[Any]:
    """The list at a path, [] if there is none."""
    holder = mapping(data, *path[:-1])
    found = holder.get(path[-1])
    return found if isinstance(found, list) else []
