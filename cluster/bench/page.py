"""Shows a report: as tables on the terminal, or as one HTML page with plots that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from cluster.bench.machine import Machine
from cluster.cli.output import table
from engine.errors import SetupError

if TYPE_CHECKING:
    from jinja2 import Template

WIDE = 200
"""Columns of a table that goes to a file."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a table, and plots that only the page shows. Text is plain; plots are SVG."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    plots: Sequence[str] = ()


class Report(Protocol):
    """A pydantic model that says where it was measured."""

    @property
    def machine(self) -> Machine: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...

    def model_dump_json(self) -> str: ...


def show(console: Console, facts: str, sections: Sequence[Section]) -> None:
    if not console.is_terminal:
        console.width = WIDE
    console.print(facts, markup=False, style="dim")
    for section in sections:
        if not section.rows and not section.note:
            continue
        console.print()
        console.print(section.title, markup=False, style="bold")
        if section.note:
            console.print(section.note, markup=False)
        if section.rows:
            rows = table(*section.columns, numbers=True)
            for row in section.rows:
                rows.add_row(*row)
            console.print(rows)


def page(title: str, sections: Sequence[Section], report: Report) -> str:
    """The whole page; the report itself is in it as JSON, in the element with the id `report`."""
    # A script element ends at the first "</", whatever stands around it.
    data = report.model_dump_json().replace("<", "\\u003c").replace("&", "\\u0026")
    return _template().render(title=title, facts=report.machine.line(), sections=sections, data=data)


def write_page(file: Path, text: str) -> None:
    """Raises SetupError if the file cannot be written."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error.strerror}", param="html") from error


@cache
def _template() -> Template:
    # Only a page needs it, and every verb of the command imports this file.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja")
