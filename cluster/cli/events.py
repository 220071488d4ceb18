"""tandem events: what the controller did, and why."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.options import ControlAddress, ControlToken, Format, Output
from cluster.cli.output import out, plain, print_data, shown, table, write_data


def command(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events with a higher id.")] = 0,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """List what the controller did, each with its reason. With -w and -o json, one object a line."""
    with control(context, address, token) as client:
        found = client.events(follow=watch, after=after)
        if watch:
            for event in found:
                _print_line(event, output)
        elif output.is_data:
            print_data(output, "EventList", [plain(event) for event in found])
        else:
            rows = table("ID", "TIME", "KIND", "SUBJECT", "REASON")
            for event in found:
                rows.add_row(*_cells(event))
            out().print(rows)


def _cells(event: pb.Event) -> tuple[str, ...]:
    clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
    return (str(event.id), clock, event.kind, event.subject, event.reason)


def _print_line(event: pb.Event, output: Format) -> None:
    if output.is_data:
        write_data(output, plain(event), again=True)
    else:
        sys.stdout.write(shown("  ".join(_cells(event))) + "\n")
        sys.stdout.flush()
