"""The fields of -o json: those that were printed once are printed for ever, under the same name and type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from cluster import control_pb2 as pb
from cluster.cli.listing import EVENTS, INSTANCES, MIGRATIONS, POOLS, REQUESTS
from cluster.message_json import API_VERSION

GOLDEN = Path(__file__).with_name("cli_schema.json")
KINDS: dict[str, Any] = {
    POOLS.kind: pb.Pool,
    INSTANCES.kind: pb.Instance,
    REQUESTS.kind: pb.RunningRequest,
    MIGRATIONS.kind: pb.Migration,
    EVENTS.kind: pb.Event,
    "ClusterStatus": pb.ClusterStatus,
    "ChangeList": pb.Change,
}
NUMBERS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
TEXTS = {FieldDescriptor.CPPTYPE_STRING}


def fields(message: Descriptor) -> dict[str, Any]:
    """Names with their JSON types; messages with theirs inside, lists in a list."""
    found: dict[str, Any] = {}
    for field in message.fields:
        inner: Any = "integer"
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            inner = fields(field.message_type)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            inner = "boolean"
        elif field.cpp_type in NUMBERS:
            inner = "number"
        elif field.cpp_type in TEXTS:
            inner = "string"
        found[field.name] = [inner] if field.is_repeated else inner
    return found


def missing(golden: Any, present: Any, path: str) -> list[str]:
    """What a reader of the golden schema would miss."""
    if isinstance(golden, dict) and isinstance(present, dict):
        return [
            lack for name in golden for lack in missing(golden[name], present.get(name), f"{path}.{name}")
        ]
    if isinstance(golden, list) and isinstance(present, list):
        return missing(golden[0], present[0], f"{path}[]")
    return [] if golden == present else [f"{path}: {present} where {golden} was"]


def test_no_field_that_was_printed_once_has_gone_or_changed() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["apiVersion"] == API_VERSION
    assert set(golden["kinds"]) == set(KINDS)
    for kind, message in KINDS.items():
        assert missing(golden["kinds"][kind], fields(message.DESCRIPTOR), kind) == []


def test_a_renamed_field_and_another_type_would_be_found() -> None:
    before = {"name": "string", "parts": [{"size": "integer"}]}
    assert missing(before, {"title": "string", "parts": [{"size": "integer"}]}, "Pool") == [
        "Pool.name: None where string was"
    ]
    assert missing(before, {"name": "string", "parts": [{"size": "string"}], "more": "string"}, "Pool") == [
        "Pool.parts[].size: string where integer was"
    ]
