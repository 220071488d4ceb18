"""Writes plain data as YAML, always in the same way: the same data gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as plain data."""

WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, list items indented below their key, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(data: Object) -> str:
    """One document; keys stay in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return text


def dump_all(documents: Iterable[Object]) -> str:
    """Several documents in one file."""
    return "---\n".join(dump(document) for document in documents)
