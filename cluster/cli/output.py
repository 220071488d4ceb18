"""Data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.message_json import API_VERSION, plain

__all__ = ["API_VERSION", "messages", "out", "plain", "print_json", "table"]

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
