"""Protobuf messages as plain data: one shape for the command line's JSON and the admin API's."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

API_VERSION = "tandem.dev/v1"


def plain(message: Message) -> dict[str, Any]:
    """A protobuf message as plain data, with every field, and 64-bit numbers as numbers."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            data[field.name] = [plain(item) if isinstance(item, Message) else item for item in value]
        elif isinstance(value, Message):
            data[field.name] = plain(value) if message.HasField(field.name) else None
        elif field.has_presence and not message.HasField(field.name):
            data[field.name] = None
        else:
            data[field.name] = value
    return data
