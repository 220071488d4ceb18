"""Where the objects that Kustomize builds were written: a problem in them, at its place in the sources.

built text ─ line ─▶ object, path inside it ─▶ the file whose object of that kind and name says the same there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as Folder

from cluster.config_yaml import Mark, Path, Problem
from k8s import kustomization
from k8s.checks import manifest, serve
from k8s.checks.manifest import Manifest, mapping

IDENTITIES = ("name", "groupName", "containerPort", "port", "key", "mountPath")
"""Fields that tell the items of a list apart: patches put new items before the old ones."""


@dataclass(frozen=True)
class Built(Problem):
    """A problem in an object that Kustomize built; `at` is the folder where its field was not found."""

    name: str
    """KIND/NAME of the object."""

    def __str__(self) -> str:
        said = str(Problem(f"{self.at}: {self.name}", self.path, self.message))
        return f"{said}\n{self.at.picture()}" if isinstance(self.at, Mark) else said


class Origins:
    """The objects of one build, and those in the files that it was made of."""

    def __init__(self, folder: Folder, text: str) -> None:
        self._folder = str(folder)
        self._built, _ = manifest.read(text, self._folder)
        self._written = [
            each
            for written, source in kustomization.texts(folder)
            for each in manifest.read(written, source)[0]
        ]

    def place(self, problem: Problem) -> Problem:
        """The same problem where it was written, or at the folder, always with its object."""
        at = problem.at
        owner = self._owner(at) if isinstance(at, Mark) else None
        if owner is None or not isinstance(at, Mark):
            return Problem(self._folder, problem.path, problem.message)
        mark, path = self._find(owner, at, problem.path) or (self._folder, problem.path)
        return Built(mark, path, problem.message, f"{owner.kind}/{owner.name}")

    def _owner(self, at: Mark) -> Manifest | None:
        """The last object that begins at or before the line."""
        before = [each for each in self._built if each.document.values[()].line <= at.line]
        return before[-1] if before else None

    def _find(self, owner: Manifest, at: Mark, path: Path) -> tuple[Mark, Path] | None:
        """The place in a file, and the path there: lists may have another order."""
        same = [m for m in self._written if (m.kind, m.name) == (owner.kind, owner.name)]
        same = [m for m in same if m.namespace == owner.namespace] or same
        if owner.mark(path) == at:
            return _field(owner, same, path)
        if serve.AT not in owner.document.values:
            return None
        # A setting or a key inside serveConfigV2, where that is a block of text.
        return next(((mark, path) for each in same if (mark := _inside(owner, each, at))), None)


def _field(owner: Manifest, same: list[Manifest], path: Path) -> tuple[Mark, Path] | None:
    """The place of a field: in the first file that has the built value there.

    What lacks a field stands in the last file, which has the object whole, unless a file has that field.
    """
    known = path
    while known and known not in owner.document.values:
        known = known[:-1]
    missing, value = path[len(known) :], _at(owner.data, known)
    found = [(each, _counterpart(owner.data, each.data, known)) for each in same]
    having = [(each, there) for each, there in found if there is not None]
    if missing or not known:
        given = any(missing[:1] and missing[0] in mapping(_at(each.data, there)) for each, there in having)
        having = [] if given else having[-1:]
    else:
        having = [(each, there) for each, there in having if _at(each.data, there) == value]
    return next(((each.mark(there), (*there, *missing)) for each, there in having), None)


def _inside(owner: Manifest, other: Manifest, at: Mark) -> Mark | None:
    """The place of a line of serveConfigV2 in another file, if it has the same text there."""
    here, there = owner.document.values[serve.AT], other.document.values.get(serve.AT)
    if there is None or _at(owner.data, serve.AT) != _at(other.data, serve.AT):
        return None
    if not there.text[there.column - 1 :].startswith("|"):
        return other.mark(serve.AT)
    line = there.line + at.line - here.line
    text = other.lines[line - 1] if line <= len(other.lines) else ""
    return Mark(there.source, line, at.column + len(text) - len(at.text), text)


def _at(data: object, path: Path) -> object:
    """The value at a path that exists."""
    for step in path:
        if isinstance(data, dict):
            data = data[step]
        elif isinstance(data, list):
            data = data[int(step)]
    return data


def _counterpart(built: object, written: object, path: Path) -> Path | None:
    """The path in the written object of what has `path` in the built one; None if it is not there."""
    found: list[str] = []
    for step in path:
        if isinstance(built, dict) and isinstance(written, dict) and step in written:
            built, written = built[step], written[step]
            found.append(step)
        elif isinstance(built, list) and isinstance(written, list):
            number = _position(built, written, int(step))
            if number is None:
                return None
            built, written = built[int(step)], written[number]
            found.append(str(number))
        else:
            return None
    return tuple(found)


def _position(built: list[object], written: list[object], number: int) -> int | None:
    """Where the item of a built list is in the written one: in its own place if it can be."""
    order = sorted(range(len(written)), key=lambda other: other != number)
    return next((other for other in order if _same(built[number], written[other])), None)


def _same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in IDENTITIES:
            if key in one or key in other:
                return one.get(key) == other.get(key)
    return one == other
