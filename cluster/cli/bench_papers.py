"""tandem bench papers: what each paper's mechanism gains over its baseline, in the simulator."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.cli.failures import Exit, Failure
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.units import counted
from simulator.papers.rows import Row
from simulator.papers.table import EXPERIMENTS, HEADER, cells, markdown, measure

COMMAND = "tandem bench papers"


def papers(
    context: typer.Context,
    numbers: Annotated[
        list[str] | None, typer.Argument(metavar="PAPER…", help="Numbers such as 10. Default: all.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More requests, seeds and loads; many minutes.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/papers.md.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Measure what the papers claim: both arms of every row run in the simulator, on the same engine."""
    chosen = numbers or list(EXPERIMENTS)
    unknown = [number for number in chosen if number not in EXPERIMENTS]
    if unknown:
        known = ", ".join(EXPERIMENTS)
        raise Failure(
            Exit.USAGE, "unknown_paper", f"no experiment for paper {', '.join(unknown)}", f"there are {known}"
        )
    rows: list[Row] = []
    title = f"simulating what {counted(len(chosen), 'paper')} claim" + "s" * (len(chosen) == 1)
    with Steps(messages(quiet=root(context).quiet)).step(title) as advance:
        for done, number in enumerate(chosen, start=1):
            rows += measure([number], quick=not full)
            advance(done, len(chosen))
    if as_markdown:
        typer.echo(markdown(rows, COMMAND + (" --full" if full else "") + " --markdown"), nl=False)
    elif output.is_data:
        print_data(
            output, "Paper", [asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in rows]
        )
    else:
        lines = table(*(name.upper() for name in HEADER))
        for row in rows:
            lines.add_row(*cells(row))
        out().print(lines)
