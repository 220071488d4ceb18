"""Puts layers of settings on one another, validates the result and says where each value came from.

    defaults < system file < file < TANDEM_* variables < flags

Knows nothing of what the settings mean: the model class that it fills is an argument.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.config_schema import expected, field_names, holds_section
from cluster.config_section import CONTRADICTION
from cluster.config_yaml import Document, Mark, Path, Problem, leaves, read_document, shown
from cluster.units import UNITS_REQUIRED

PREFIX = "TANDEM_"
SEPARATOR = "__"
DEFAULT = "default"

M = TypeVar("M", bound=BaseModel)


@dataclass
class Layer:
    """Values of one source; `at` finds the place of a value, `key_at` that of its key."""

    data: dict[str, object]
    values: dict[Path, Mark | str] = field(default_factory=dict)
    keys: dict[Path, Mark | str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Resolved(Generic[M]):
    """The outcome: a config, or the problems that prevent one (all of them, in order of place)."""

    config: M | None
    problems: tuple[Problem, ...]
    origins: Mapping[Path, str]


def file_layer(text: str, source: str) -> Layer:
    document: Document = read_document(text, source)
    values: dict[Path, Mark | str] = {(): source, **document.values}
    return Layer(document.data, values, dict(document.keys), document.problems)


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """TANDEM_POOLS__DECODE__REPLICAS=4 sets pools.decode.replicas; values are read as YAML.

    Only names with a double underscore count: every setting is in a section, and Kubernetes defines
    TANDEM_PORT and TANDEM_SERVICE_HOST in each pod beside a Service named tandem.
    """
    layer = Layer({})
    for name in sorted(environment):
        if not name.startswith(PREFIX) or SEPARATOR not in name:
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
        try:
            value = yaml.safe_load(environment[name])
        except (yaml.YAMLError, ValueError):
            problem = f"not a YAML value: {shown(environment[name])}"
            layer.problems.append(Problem(name, path, problem))
            continue
        _put(layer, path, value, name)
    return layer


def flag_layer(overrides: Mapping[str, object], flags: Mapping[str, str]) -> Layer:
    """Overrides by dotted path; `flags` names the command-line flag of a path, for messages."""
    layer = Layer({})
    for dotted, value in overrides.items():
        _put(layer, tuple(dotted.split(".")), value, flags.get(dotted, f"--set {dotted}"))
    return layer


def resolve(model: type[M], layers: list[Layer]) -> Resolved[M]:
    """Merge the layers, the last one strongest, and validate the whole."""
    merged: dict[str, object] = {}
    values: dict[Path, Mark | str] = {}
    keys: dict[Path, Mark | str] = {}
    problems = [problem for layer in layers for problem in layer.problems]
    for layer in layers:
        _merge(model, merged, layer.data)
        values |= layer.values
        keys |= layer.keys
    config: M | None = None
    try:
        config = model.model_validate(merged, context={UNITS_REQUIRED: True})
    except ValidationError as error:
        problems += [_problem(model, details, merged, values, keys) for details in error.errors()]
    if config is None or problems:
        return Resolved(None, tuple(sorted(problems, key=_order)), {})
    return Resolved(config, (), _origins(config, values))


def _put(layer: Layer, path: Path, value: object, name: str) -> None:
    here = layer.data
    for step in path[:-1]:
        inner = here.setdefault(step, {})
        if not isinstance(inner, dict):
            layer.problems.append(Problem(name, path, f"{step} is set to a plain value as well"))
            return
        here = inner
    here[path[-1]] = value
    for inner_path, _ in leaves({path[-1]: value}, path[:-1]):
        layer.values[inner_path] = name
    for end in range(1, len(path) + 1):
        layer.keys[path[:end]] = layer.values[path[:end]] = name


def _merge(model: type[BaseModel] | None, target: dict[str, object], source: Mapping[str, object]) -> None:
    """Merge in place. A section that is null in YAML (its lines are commented out) says nothing."""
    for key, value in source.items():
        section = holds_section(model, key)
        if value is None and section is not None:
            continue
        present = target.get(key)
        if section is not None and isinstance(value, Mapping):
            inner: dict[str, object] = present if isinstance(present, dict) else {}
            target[key] = inner
            _merge(section, inner, value)
        else:
            target[key] = value


def _problem(
    model: type[BaseModel],
    details: ErrorDetails,
    merged: Mapping[str, object],
    values: Mapping[Path, Mark | str],
    keys: Mapping[Path, Mark | str],
) -> Problem:
    path = tuple(str(step) for step in details["loc"])
    if path[-1] == "[key]":
        path = path[:-1]
    if details["type"] == "extra_forbidden":
        return Problem(_nearest(keys, path), path, _unknown(model, path))
    if details["type"] == CONTRADICTION:
        return Problem(_nearest(values, path), path, details["msg"])
    if details["type"] == "missing" and not path[-1].isdigit():
        return Problem(_nearest(values, path), path, f"is required: {expected(model, path)}")
    if details["type"] == "missing":  # a place of a list that is too short
        path = path[:-1]
    limits: dict[str, Any] = details.get("ctx", {})
    got = shown(_value(merged, path))
    return Problem(_nearest(values, path), path, f"expected {expected(model, path, limits)}, got {got}")


def _value(merged: object, path: Path) -> object:
    """What was written: pydantic reports some values as its first step has changed them."""
    for step in path:
        if isinstance(merged, list):
            merged = merged[int(step)]
        else:
            merged = merged.get(step) if isinstance(merged, dict) else None
    return merged


def _unknown(model: type[BaseModel], path: Path) -> str:
    names = field_names(model, path[:-1])
    in_list = any(step.isdigit() for step in path)
    if not in_list and (elsewhere := _elsewhere(model, path[-1])):
        return f'unknown key here, did you mean "{elsewhere}"?'
    close = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.6)
    if close:
        return f'unknown key, did you mean "{close[0]}"?'
    return f"unknown key, expected one of {', '.join(names)}"


def _elsewhere(model: type[BaseModel], name: str, path: Path = ()) -> str | None:
    """The dotted path of a key of that name in another section."""
    for key in field_names(model, path):
        if key == name and path:
            return ".".join((*path, key))
        if holds_section(model, *path, key) is not None:
            found = _elsewhere(model, name, (*path, key))
            if found:
                return found
    return None


def _nearest(places: Mapping[Path, Mark | str], path: Path) -> Mark | str:
    for end in range(len(path), -1, -1):
        if path[:end] in places:
            return places[path[:end]]
    return DEFAULT


def _order(problem: Problem) -> tuple[str, int, int]:
    if isinstance(problem.at, Mark):
        return (problem.at.source, problem.at.line, problem.at.column)
    return (problem.at, 0, 0)


def _origins(config: BaseModel, values: Mapping[Path, Mark | str]) -> dict[Path, str]:
    dumped = config.model_dump(mode="json")
    return {path: str(_nearest(values, path)) if path in values else DEFAULT for path, _ in leaves(dumped)}
