"""serveConfigV2, the YAML inside the YAML: Serve's schema, and tandem's settings among its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from cluster.config import Config
from cluster.config import read as read_config
from cluster.config_yaml import Document, Mark, Path, Problem, read_document
from cluster.serve_schema import faults
from k8s.checks.manifest import Manifest, items, mapping

AT: Path = ("spec", "serveConfigV2")
TANDEM = "cluster.app:build"
NOWHERE = File("/nonexistent")


def check(manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with the text, at its own lines where it is a literal block."""
    document = _document(manifest)
    if document is None:
        return
    for problem in document.problems:
        yield replace(problem, at=_outer(manifest, problem.at), path=(*AT, *problem.path))
    for path, message in faults(document.data):
        yield _problem(manifest, document, path, message)
    for number, application in enumerate(items(document.data, "applications")):
        if mapping(application) and application.get("import_path") == TANDEM:
            yield from _settings(manifest, document, number)


def application(manifest: Manifest) -> Config | None:
    """The settings that a RayService gives to tandem; None if it runs something else, or they are wrong."""
    document = _document(manifest)
    return None if document is None else settings_of(document.data)


def settings_of(data: object) -> Config | None:
    """The same of a serveConfigV2 that was read already."""
    ours = [each for each in items(data, "applications") if mapping(each).get("import_path") == TANDEM]
    if not ours:
        return None
    return read_config(None, mapping(ours[0], "args"), environment={}, system_file=NOWHERE).config


def at_argument(manifest: Manifest, name: str) -> Mark:
    """Where an argument of tandem's application stands, or its application."""
    document = _document(manifest)
    assert document is not None
    for number, application in enumerate(items(document.data, "applications")):
        if mapping(application).get("import_path") == TANDEM:
            return _mark(manifest, document, ("applications", str(number), "args", name))
    return manifest.mark(AT)


def _document(manifest: Manifest) -> Document | None:
    text = mapping(manifest.data, "spec").get(AT[-1])
    return read_document(text, "") if isinstance(text, str) else None


def _settings(manifest: Manifest, document: Document, number: int) -> Iterator[Problem]:
    """Arguments are settings by their dotted path; `config` names a file inside the image."""
    arguments: dict[str, Any] = dict(mapping(items(document.data, "applications")[number], "args"))
    arguments.pop("config", None)
    found = read_config(None, arguments, environment={}, system_file=NOWHERE)
    for problem in found.problems:
        # The longest argument that the path begins with is the one that says it.
        dotted = ".".join(problem.path)
        named = [key for key in arguments if dotted == key or dotted.startswith(f"{key}.")]
        key = max(named, key=len, default=dotted)
        path = ("applications", str(number), "args", key)
        yield _problem(manifest, document, path, problem.message)


def _problem(manifest: Manifest, document: Document, path: Path, message: str) -> Problem:
    return Problem(_mark(manifest, document, path), (*AT, *path), message)


def _mark(manifest: Manifest, document: Document, path: Path) -> Mark:
    inner = Manifest(document).mark(path) if document.values else manifest.mark(AT)
    return _outer(manifest, inner)


def _outer(manifest: Manifest, inner: Mark | str) -> Mark:
    """The place in the file of a place in the text; the key's place unless the text is a literal block."""
    start = manifest.document.values[AT]
    if isinstance(inner, str) or not start.text[start.column - 1 :].startswith("|"):
        return manifest.mark(AT)
    line = start.line + inner.line
    text = manifest.lines[line - 1] if line <= len(manifest.lines) else ""
    return Mark(start.source, line, inner.column + len(text) - len(inner.text), text)
