"""Shows how a benchmark goes, on stderr, and what it came to, on stdout and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.bench.load import Advance
from cluster.bench.page import Report, Section, page, show, write_page
from cluster.cli.failures import failure
from cluster.cli.options import Format
from cluster.cli.output import out, print_data
from engine.errors import SetupError


class Watch:
    """A bar for the whole and one for what runs now; off a terminal, the lines of `say` alone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task("all tests", total=None)
        self._now = self._bars.add_task("connecting", total=None)

    def __enter__(self) -> Watch:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def expect(self, tests: int) -> None:
        self._bars.update(self._whole, total=tests)

    def begin(self, title: str) -> Advance:
        """The next test; gives who is told how far it is."""
        self._bars.reset(self._now, description=title, total=None)
        return lambda done, total: self._bars.update(self._now, completed=done, total=total)

    def say(self, line: str) -> None:
        """One test is done."""
        self._bars.advance(self._whole)
        self._bars.print(line, markup=False, highlight=False, soft_wrap=True)


def present(
    report: Report, sections: Sequence[Section], title: str, html: Path | None, output: Format
) -> None:
    """The report as tables or JSON, and as a page if a file for it is named. Raises Failure."""
    if output.is_data:
        print_data(output, type(report).__name__, [report.model_dump(mode="json")])
    else:
        show(out(), report.machine.line(), sections)
    if html is not None:
        try:
            write_page(html, page(title, sections, report))
        except SetupError as error:
            failed = failure(error)
            failed.after_data = True
            raise failed from None
