"""Checks a Ray Serve config file without a cluster: Serve's own schema, and keys that it does not know.

Serve ignores an unknown key of a deployment without a word, so those are looked for here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.config_yaml import Path

Fault = tuple[Path, str]


def faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with a config as `serve deploy` takes it. The first call imports Ray: seconds."""
    from ray.serve.schema import ServeDeploySchema

    yield from unknown_keys(data, ServeDeploySchema)
    try:
        ServeDeploySchema.model_validate(dict(data))
    except ValidationError as error:
        for details in error.errors():
            yield tuple(str(step) for step in details["loc"]), details["msg"]


def unknown_keys(value: object, kind: object, path: Path = ()) -> Iterator[Fault]:
    """Keys of mappings that the model classes in the annotation `kind` don't have."""
    if isinstance(value, list):
        inner = next(iter(get_args(_plain(kind))), None)
        for number, item in enumerate(value):
            yield from unknown_keys(item, inner, (*path, str(number)))
    model = _model(kind)
    if model is None or not isinstance(value, Mapping):
        return
    known = {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}
    for key, item in value.items():
        if key in known:
            yield from unknown_keys(item, _annotation(model, key), (*path, str(key)))
        else:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f', did you mean "{near[0]}"?' if near else ""
            yield (*path, str(key)), f"Ray Serve does not know this key{hint}"


def _annotation(model: type[BaseModel], key: str) -> object:
    named = model.model_fields.get(key)
    aliased = (field for field in model.model_fields.values() if field.alias == key)
    field = named or next(aliased, None)
    return field.annotation if field is not None else None


def _plain(kind: object) -> object:
    """The list type inside an optional one."""
    if get_origin(kind) in (Union, UnionType):
        return next((inner for inner in get_args(kind) if get_origin(inner) is list), None)
    return kind if get_origin(kind) is list else None


def _model(kind: object) -> type[BaseModel] | None:
    """The model class of an annotation, if it says just one."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    models = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if len(models) == 1 else None
