"""How YAML is written, which no reader of it minds: told, and no problem.

The rules on which yamllint's settings all agree, but for the length of lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.config_yaml import Mark, Problem

MOST_BLANK = 2
"""Blank lines in a row."""

INDENTED = re.compile(r" *\t")


def notes(text: str, source: str) -> Iterator[Problem]:
    """What is odd about a file's text, at its lines."""
    lines = text.split("\n")
    blank = 0
    for number, line in enumerate(lines, 1):
        bare = line.removesuffix("\r")
        blank = 0 if bare.strip() else blank + 1
        if bare != line:
            yield _note(source, number, bare, len(bare), "the line ends with a carriage return")
        if bare.rstrip() != bare:
            yield _note(source, number, bare, len(bare.rstrip()), "trailing spaces")
        if INDENTED.match(bare) and bare.strip():
            yield _note(source, number, bare, bare.index("\t"), "a tab in the indentation")
        if blank == MOST_BLANK + 1 and number < len(lines):
            yield _note(source, number, bare, 0, f"more than {MOST_BLANK} blank lines")
    if lines[-1]:
        yield _note(source, len(lines), lines[-1], len(lines[-1]), "the last line has no end")


def _note(source: str, line: int, text: str, column: int, message: str) -> Problem:
    return Problem(Mark(source, line, column + 1, text), (), message)
