"""Data on stdout, messages on stderr. Names and reasons that others chose are shown, and obeyed by nobody."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.message_json import API_VERSION, plain

__all__ = [
    "API_VERSION", "messages", "out", "plain", "print_data", "print_json", "show_titles", "shown", "styled",
    "table",
]  # fmt: skip

WIDE = 400
"""Columns of what is piped: nothing is cut off for want of a terminal."""


KEPT = "\n\t"
_titles = True


class _Plain(Console):
    """Prints what it is given: no markup, no names of emoji, nothing that a terminal would obey."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(shown(text), **more)


class _Rows(Table):
    """A table whose cells are plain, whoever prints it; one with a style of its own is a Text."""

    def add_row(self, *cells: Any, **more: Any) -> None:
        super().add_row(*(Text(shown(cell)) if isinstance(cell, str) else cell for cell in cells), **more)


def out() -> Console:
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Plain(width=WIDE if piped else None)


def messages(*, quiet: bool = False) -> Console:
    return _Plain(stderr=True, quiet=quiet)


def show_titles(on: bool) -> None:
    """Whether the tables of this process have titles."""
    global _titles
    _titles = on


def shown(text: str) -> str:
    """The text with a ? for each sign that is not printed, such as those that begin a terminal's commands."""
    return "".join(sign if sign.isprintable() or sign in KEPT else "?" for sign in text)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Parts of one text, some with a style of their own."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((shown(text), style) for text, style in pairs))


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


def table(*columns: str, numbers: bool = False) -> Table:
    """With `numbers` all columns but the first are aligned at the right."""
    rows = _Rows(box=None, pad_edge=False, header_style="bold", show_header=_titles)
    for place, title in enumerate(columns):
        rows.add_column(Text(shown(title)), justify="right" if numbers and place else "left")
    return rows
