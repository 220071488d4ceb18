"""Shows each long step of a start on stderr: a live line on a terminal, two plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cluster.cli.output import styled

Advance = Callable[[int, int], None]
"""Told how much is done, and of how much."""


def unseen(done: int, total: int) -> None:
    """The Advance of a step that nobody looks at."""


class Steps:
    """`with steps.step("starting Ray") as advance: … advance(done, total)`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        begun = time.monotonic()
        if self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            self._console.print(f"  … {title}")
            yield unseen
        took = f" {time.monotonic() - begun:.1f} s"
        self._console.print(styled("  ", ("✓", "green"), f" {title}", (took, "dim")))

    def say(self, text: str) -> None:
        self._console.print(text)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn(" "),
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
