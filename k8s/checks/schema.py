"""JSON schemas as the API server means them: CRD schemas mended, defaults applied, errors in our words."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry

from cluster.config_yaml import Path, shown
from k8s.checks.manifest import Found

Schema = dict[str, Any]

_OPEN = "x-kubernetes-preserve-unknown-fields"
_NAMES = {"object": "a mapping", "array": "a list", "boolean": "true or false", "string": "text"}


def mended(schema: Schema) -> Schema:
    """A CRD's schema as strict JSON schema: unknown fields refused, int-or-string and null as Kubernetes
    has them, `metadata` open."""
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    result.pop("default", None)
    properties = schema.get("properties")
    if isinstance(properties, dict):
        result["properties"] = {
            name: {"type": "object"} if name == "metadata" else mended(inner)
            for name, inner in properties.items()
        }
        if not schema.get(_OPEN) and "additionalProperties" not in schema:
            result["additionalProperties"] = False
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            result[key] = mended(schema[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            # Alternatives only add to what stands beside them, so they don't close it.
            result[key] = [
                {name: part for name, part in mended(inner).items() if name != "additionalProperties"}
                for inner in schema[key]
            ]
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
        result.pop("anyOf", None)
    if schema.get("nullable") and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    return result


def root(schema: Schema) -> Schema:
    """The schema of a whole object: every kind has these two."""
    inner = {**schema.get("properties", {}), "apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    return mended({**schema, "properties": {**inner, "metadata": {"type": "object"}}})


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy in which what is absent has the CRD's default, as the API server sees it."""
    if isinstance(value, dict):
        filled = dict(value)
        extra = schema.get("additionalProperties")
        for name, inner in schema.get("properties", {}).items():
            if name not in filled and "default" in inner:
                filled[name] = copy.deepcopy(inner["default"])
            if name in filled:
                filled[name] = with_defaults(filled[name], inner)
        if isinstance(extra, dict):
            filled |= {name: with_defaults(inner, extra) for name, inner in filled.items()}
        return filled
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [with_defaults(item, schema["items"]) for item in value]
    return value


def errors(value: object, schema: Schema, registry: Registry[Any] | None = None) -> Iterator[Found]:
    """Everything in which a value breaks a schema."""
    validator = Draft202012Validator(schema, registry=registry or Registry())
    for error in validator.iter_errors(value):
        yield from _found(error)


def near(name: str, known: list[str]) -> str:
    """ "unknown field", with the field that was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'unknown field, did you mean "{close[0]}"?' if close else "unknown field"


def _found(error: ValidationError) -> Iterator[Found]:
    path: Path = tuple(str(step) for step in error.absolute_path)
    schema = error.schema if isinstance(error.schema, dict) else {}
    wanted: Any = error.validator_value
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(schema.get("properties", {}))
        for name in error.instance:
            if name not in known:
                yield (*path, str(name)), near(str(name), known)
    elif error.validator == "required" and isinstance(error.instance, dict):
        for name in wanted:
            if name not in error.instance:
                yield path, f'"{name}" is missing'
    elif error.validator == "type":
        names = wanted if isinstance(wanted, list) else [wanted]
        words = " or ".join(_NAMES.get(str(name), str(name)) for name in names)
        yield path, f"expected {words}, got {shown(error.instance)}"
    elif error.validator == "enum":
        choices = ", ".join(str(choice) for choice in wanted)
        yield path, f"expected one of {choices}, got {shown(error.instance)}"
    elif error.validator in ("oneOf", "anyOf") and error.context:
        yield path, f"matches none of the forms that are allowed here, got {shown(error.instance)}"
    elif error.validator == "pattern":
        yield path, f"expected text of the form {wanted}, got {shown(error.instance)}"
    else:
        yield path, error.message[:200]
