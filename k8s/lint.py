"""Checks manifests without a cluster.

YAML, its style ─▶ schemas of the kinds ─▶ KubeRay's rules ─▶ serveConfigV2 ─▶ what the objects must agree on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config_yaml import Mark, Problem
from engine.errors import SetupError
from k8s import kustomization
from k8s.checks import manifest, ray, serve, style, tandem
from k8s.checks.kinds import RAY_KINDS, Kinds
from k8s.checks.manifest import Manifest
from k8s.origin import Origins


@dataclass(frozen=True)
class Report:
    """What was found, in order of place; the kinds in the files that no schema was there for.

    `style` is what is odd in how the files are written, and no problem.
    """

    problems: tuple[Problem, ...]
    unchecked: tuple[str, ...]
    objects: int
    style: tuple[Problem, ...] = ()


def lint_paths(paths: Iterable[Path], kinds: Kinds) -> Report:
    """Check files and folders as one set of objects; what Kustomize built is named where it was written.

    Raises SetupError for what cannot be read or built.
    """
    streams = list(texts(paths))
    report = lint(streams, kinds)
    built = {source: text for text, source in streams if Path(source).is_dir()}
    origins = {
        source: Origins(Path(source), text)
        for source, text in built.items()
        if any(_source(problem) == source for problem in report.problems)
    }
    placed = [
        origins[source].place(problem) if (source := _source(problem)) in origins else problem
        for problem in report.problems
    ]
    written = {source: text for text, source in streams if source not in built}
    written |= {source: text for folder in built for text, source in kustomization.texts(Path(folder))}
    odd = [note for source, text in written.items() for note in style.notes(text, source)]
    return replace(report, problems=_sorted(placed), style=_sorted(odd))


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
    return Report(_sorted(problems), tuple(sorted(unchecked)), len(manifests))


def texts(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """The text of each file; of a folder with a kustomization what Kustomize builds, of another its files.

    Raises SetupError for what cannot be read or built.
    """
    for path in paths:
        if kustomization.own_file(path) is not None:
            yield kustomization.build(path), str(path)
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


def _sorted(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """In order of place, each once."""
    return tuple(sorted(dict.fromkeys(problems), key=_order))


def _source(problem: Problem) -> str:
    return problem.at.source if isinstance(problem.at, Mark) else problem.at


def _order(problem: Problem) -> tuple[str, int, int, str]:
    if isinstance(problem.at, Mark):
        return (problem.at.source, problem.at.line, problem.at.column, problem.message)
    return (problem.at, 0, 0, problem.message)
