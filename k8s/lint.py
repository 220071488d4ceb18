"""Checks manifests without a cluster.

YAML ─▶ schemas of the kinds ─▶ KubeRay's own rules ─▶ serveConfigV2 ─▶ what the objects must agree on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.config_yaml import Mark, Problem
from engine.errors import SetupError
from k8s.checks import manifest, ray, serve, tandem
from k8s.checks.kinds import RAY_KINDS, Kinds
from k8s.checks.manifest import Manifest
from k8s.render import kustomize

KUSTOMIZATION = "kustomization.yaml"


@dataclass(frozen=True)
class Report:
    """What was found, in order of place; the kinds in the files that no schema was there for."""

    problems: tuple[Problem, ...]
    unchecked: tuple[str, ...]
    objects: int


def lint(texts: Iterable[tuple[str, str]], kinds: Kinds) -> Report:
    """Check YAML streams, each with the name of its source, as one set of objects."""
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    unchecked: set[str] = set()
    for text, source in texts:
        found, wrong = manifest.read(text, source)
        manifests += found
        problems += wrong
    for each in manifests:
        fields = kinds.check(each)
        if fields is None:
            unchecked.add(f"{each.group} {each.kind}")
        else:
            problems += each.problems(fields)
        problems += _ray(each)
    problems += tandem.check(manifests)
    unique = dict.fromkeys(problems)
    return Report(tuple(sorted(unique, key=_order)), tuple(sorted(unchecked)), len(manifests))


def texts(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """The text of each file; of a folder with a kustomization what Kustomize builds, of another its files.

    Raises SetupError for what cannot be read.
    """
    for path in paths:
        if (path / KUSTOMIZATION).is_file():
            yield kustomize(path), str(path)
        elif path.is_dir():
            inner = sorted(path.glob("*.yaml"))
            if not inner:
                raise SetupError(f"{path} holds no YAML file")
            yield from texts(inner)
        else:
            try:
                yield path.read_text(encoding="utf-8"), str(path)
            except (OSError, UnicodeDecodeError) as error:
                raise SetupError(f"{path}: cannot be read: {error}") from error


def _ray(each: Manifest) -> Iterator[Problem]:
    if each.kind in RAY_KINDS and each.group.partition("/")[0] == "ray.io":
        yield from each.problems(ray.check(each))
        if each.kind == "RayService":
            yield from serve.check(each)


def _order(problem: Problem) -> tuple[str, int, int, str]:
    if isinstance(problem.at, Mark):
        return (problem.at.source, problem.at.line, problem.at.column, problem.message)
    return (problem.at, 0, 0, problem.message)
