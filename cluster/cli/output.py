"""Data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum

import yaml
from rich.console import Console
from rich.table import Table

from cluster.message_json import API_VERSION, plain

__all__ = ["API_VERSION", "messages", "out", "plain", "print_data", "print_json", "table"]

WIDE = 400
"""Columns of what is piped: nothing is cut off for want of a terminal."""


def out() -> Console:
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, soft_wrap=True, width=WIDE if piped else None)


def messages(*, quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)


def print_json(kind: str, items: Sequence[object]) -> None:
    """The stable envelope of -o json."""
    sys.stdout.write(json.dumps(_envelope(kind, items), indent=2, ensure_ascii=False) + "\n")


def print_data(form: StrEnum, kind: str, items: Sequence[object], *, again: bool = False) -> None:
    """The envelope in the form of -o, yaml or json; `again`: one of many, a line or a YAML document each."""
    write_data(form, _envelope(kind, items), again=again)


def write_data(form: StrEnum, body: object, *, again: bool = False) -> None:
    """Any data as print_data writes it."""
    text = json.dumps(body, indent=None if again else 2, ensure_ascii=False) + "\n"
    if form.value == "yaml":  # by way of JSON, so that both have the same types
        text = yaml.safe_dump(json.loads(text), explicit_start=again, sort_keys=False, allow_unicode=True)
    sys.stdout.write(text)
    sys.stdout.flush()


def _envelope(kind: str, items: Sequence[object]) -> dict[str, object]:
    return {"apiVersion": API_VERSION, "kind": kind, "items": list(items)}


def table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")
