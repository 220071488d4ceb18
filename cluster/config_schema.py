"""What a config may hold, read off its model: words for error messages, a JSON schema, and a page of docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel

from cluster.config_yaml import Path, shown
from cluster.units import format_duration, format_quantity

_FORMATS = {
    "quantity": ("with its unit, such as 256Mi", format_quantity),
    "duration": ("with its unit, such as 250ms or 5s", format_duration),
}
_TYPES = {"string": "text", "boolean": "true or false", "object": "a mapping", "null": "null"}


def holds_section(model: type[BaseModel] | None, *path: str) -> type[BaseModel] | None:
    """The model class of a section, or None where the path leads to a value or nowhere.

    A number leads into a list of sections.
    """
    here: object = model
    for step in path:
        here = _below(here, step)
    return here if _is_model(here) else None


def _below(kind: object, step: str) -> object:
    """The type of a key of a section, or of an item of a list."""
    if _is_model(kind):
        field = kind.model_fields.get(step)
        return field.annotation if field is not None else None
    if get_origin(kind) in (list, tuple) and step.isdigit():
        return get_args(kind)[0]
    return None


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def field_names(model: type[BaseModel], path: Path = ()) -> list[str]:
    """The valid keys of a section, in the order of the docs."""
    section = holds_section(model, *path)
    return list(section.model_fields) if section is not None else []


def setting_of(model: type[BaseModel], path: Path) -> Path:
    """The path of the setting that a value belongs to.

    A free mapping, such as resources or the limits of tenants, is one setting: its keys are names, which may
    have dots.
    """
    for end in range(1, len(path)):
        if holds_section(model, *path[:end]) is None:
            return path[:end]
    return path


def settings(
    model: type[BaseModel], data: Mapping[str, object], path: Path = ()
) -> Iterator[tuple[Path, object]]:
    """Every setting of a config as plain data, with its path; a free mapping is one value."""
    for key, value in data.items():
        if isinstance(value, Mapping) and holds_section(model, *path, key) is not None:
            yield from settings(model, value, (*path, key))
        else:
            yield (*path, key), value


def is_secret(model: type[BaseModel], path: Path) -> bool:
    """Whether a value must not be shown."""
    section = holds_section(model, *path[:-1])
    field = section.model_fields.get(path[-1]) if section is not None else None
    extra = field.json_schema_extra if field is not None else None
    return isinstance(extra, dict) and bool(extra.get("secret"))


def expected(model: type[BaseModel], path: Path, limits: dict[str, Any] | None = None) -> str:
    """What a value may be, for a message: "integer ≥ 1", "one of auto, shm, tcp, or null"."""
    section = holds_section(model, *path[:-1])
    if holds_section(model, *path) is not None:
        return f"a mapping with the keys {', '.join(field_names(model, path))}"
    if section is None or path[-1] not in section.model_fields:
        return _inside(model, path)
    return describe(section.model_json_schema()["properties"][path[-1]], limits)


def _inside(model: type[BaseModel], path: Path) -> str:
    """A value inside a list or a free mapping."""
    for end in range(len(path) - 1, 0, -1):
        section = holds_section(model, *path[: end - 1])
        if section is not None and path[end - 1] in section.model_fields:
            schema = section.model_json_schema()["properties"][path[end - 1]]
            inner = _item(schema, path[end])
            return describe(inner) if isinstance(inner, dict) else "another value"
    return "another value"


def _item(schema: dict[str, Any], step: str) -> object:
    """What a list or a free mapping holds at a place."""
    places = {str(number): item for number, item in enumerate(schema.get("prefixItems", ()))}
    return places.get(step) or schema.get("items") or schema.get("additionalProperties")


def describe(schema: dict[str, Any], limits: dict[str, Any] | None = None) -> str:
    """One property of a JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(describe(choice, limits) for choice in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    if schema.get("format") in _FORMATS:
        found = limits or {}
        words, form = _FORMATS[schema["format"]]
        bounds = [f" {sign} {form(found[key])}" for key, sign in _SIGNS if key in found]
        return f"{schema['format']}{''.join(bounds)} {words}"
    if schema.get("type") in ("integer", "number"):
        bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS if name in schema]
        return " ".join([schema["type"], " and ".join(bounds)]).strip()
    if schema.get("type") == "array":
        return _list(schema)
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"a mapping of name to {describe(schema['additionalProperties'])}"
    return _TYPES.get(schema.get("type", ""), "another value")


def _list(schema: dict[str, Any]) -> str:
    """Of any length, or of a fixed one with a type for each place."""
    if places := [describe(item) for item in schema.get("prefixItems", ())]:
        each = f", each {places[0]}" if len(set(places)) == 1 else f": {', '.join(places)}"
        return f"a list of {len(places)}{each}"
    items = schema.get("items", {})
    least = f"at least {schema['minItems']} " if schema.get("minItems") else ""
    return f"a list of {least}{'mappings' if '$ref' in items else describe(items)}"


_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
_SIGNS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) for editors: `# yaml-language-server: $schema=FILE`."""
    schema = model.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def markdown(model: type[BaseModel]) -> str:
    """docs/configuration.md: one table per section, from the descriptions in the model."""
    page = [_HEAD]
    for path, section in _sections(model):
        page.append(f"\n## `{'.'.join(path)}`\n\n{_sentence(section)}\n")
        page.append("| key | value | default | meaning |\n|---|---|---|---|")
        defaults = section().model_dump(mode="json")
        properties = section.model_json_schema()["properties"]
        for name in section.model_fields:
            schema = properties[name]
            words = describe(schema).replace("|", "\\|")
            meaning = " ".join(schema.get("description", "").split())
            page.append(f"| `{name}` | {words} | `{shown_default(defaults[name])}` | {meaning} |")
    return "\n".join(page) + "\n"


def shown_default(value: object) -> str:
    if isinstance(value, str):
        return value
    return "{}" if value == {} else "[]" if value == [] else shown(value)


def _sentence(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _sections(model: type[BaseModel], path: Path = ()) -> Iterator[tuple[Path, type[BaseModel]]]:
    """Sections that hold values, not those that hold sections only."""
    for name in field_names(model, path):
        section = holds_section(model, *path, name)
        if section is None:
            continue
        inner = (*path, name)
        if any(holds_section(section, key) is None for key in section.model_fields):
            yield inner, section
        yield from _sections(model, inner)


_HEAD = """# Configuration

<!-- Generated from cluster/config.py by `make docs`. -->

One YAML file configures tandem. Every key has a default, so an empty file is valid.
A later layer wins over an earlier one:

1. the defaults below
2. `/etc/tandem/tandem.yaml`
3. the file given with `-f FILE`
4. environment variables: `TANDEM_POOLS__DECODE__REPLICAS=4` sets `pools.decode.replicas` (read as YAML)
5. flags: `--port 8001`, or `--set engine.token_budget=128` for any key

`tandem config show --origin` prints every value that a start would have and where it comes from;
`tandem config show --running` prints what a running cluster has, with `--origin` too;
`tandem config validate -f FILE` checks a file without starting anything;
`tandem config schema` prints a JSON schema for editors.

Amounts of memory and durations need a unit: `256Mi`, `1.5Gi`, `250ms`, `5s`, `2m`.
Unknown and duplicate keys are errors."""
