"""Data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

API_VERSION = "tandem.dev/v1"


WIDE = 400
"""Columns of what is piped: nothing is cut off for want of a terminal."""


def out() -> Console:
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, soft_wrap=True, width=WIDE if piped else None)


def messages(*, quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)


def print_json(kind: str, items: Sequence[object]) -> None:
    """The stable envelope of -o json."""
    body = {"apiVersion": API_VERSION, "kind": kind, "items": list(items)}
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def plain(message: Message) -> dict[str, Any]:
    """A protobuf message as plain data, with every field, and 64-bit numbers as numbers."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            data[field.name] = [plain(item) if isinstance(item, Message) else item for item in value]
        elif isinstance(value, Message):
            data[field.name] = plain(value) if message.HasField(field.name) else None
        else:
            data[field.name] = value
    return data
