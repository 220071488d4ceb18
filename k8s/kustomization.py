"""A folder that Kustomize builds: what it gives, the files that it is made of, and why it cannot be built."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.config_yaml import Problem, read_documents
from engine.errors import SetupError
from k8s.checks.manifest import items, mapping
from k8s.render import kustomize

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
LISTS = ("patches", "patchesStrategicMerge", "components", "resources", "bases")
"""What names files in a kustomization: those that change objects before those that have them whole."""

KUBECTL_LOG = re.compile(r'[EWIF]\d{4} \S+ +\d+ [^\]]+\] "command failed" err=')
"""What kubectl puts before its own message: level, date, time, process and place in its source."""


def own_file(folder: Path) -> Path | None:
    """The kustomization of a folder; None if it has none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def build(folder: Path) -> str:
    """What Kustomize makes of the folder.

    Raises SetupError without Kustomize, and with the place in the files if one of them is not valid YAML.
    """
    try:
        return kustomize(folder)
    except SetupError as error:
        broken = [str(problem) for text, source in texts(folder) for problem in _broken(text, source)]
        raise SetupError("\n".join(broken) or without_log(error.message)) from error


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """The text and the name of each file that the kustomization is made of, its own file first.

    Files that cannot be read are left out, and so is what is no file: the address of a repository.
    """
    yield from _texts(folder, set())


def without_log(message: str) -> str:
    """kubectl's message without what its log puts around it."""
    start = KUBECTL_LOG.search(message)
    if start is None:
        return message
    before, said = message[: start.start()], message[start.end() :].strip()
    if said.startswith("<"):
        said = " ".join(said.strip("<> \n").split())
    elif said.startswith('"'):
        said = re.sub(r'\\(["\\])', r"\1", said[1:].removesuffix('"').replace("\\n", " "))
    return before + said


def _texts(path: Path, seen: set[Path]) -> Iterator[tuple[str, str]]:
    path = Path(os.path.normpath(path))
    own = own_file(path) if path.is_dir() else path
    if own is None or own in seen:
        return
    seen.add(own)
    try:
        text = own.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    yield text, str(own)
    if own.name in NAMES:
        for name in _names(text):
            yield from _texts(own.parent / name, seen)


def _names(text: str) -> Iterator[str]:
    """The paths in a kustomization; a patch may also be text, which is no path."""
    for document in read_documents(text, ""):
        for key in LISTS:
            for entry in items(document.data, key):
                name = mapping(entry).get("path") if mapping(entry) else entry
                if isinstance(name, str) and "\n" not in name:
                    yield name


def _broken(text: str, source: str) -> Iterator[Problem]:
    for document in read_documents(text, source):
        yield from document.problems
