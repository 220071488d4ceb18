"""tandem explain: why a request went where it did, why a pool has its size, what led to an event."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.options import ControlAddress, ControlToken, Format, Output
from cluster.cli.output import out, plain, print_data, table


def command(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST|EVENT|POOL|INSTANCE",
            help="A request's id, an event's number, a pool, or an instance.",
        ),
    ],
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Tell the recorded reasons of decisions, the oldest first."""
    with control(context, address, token) as client:
        found = client.explain(subject)
    if output.is_data:
        print_data(output, "ExplanationList", [plain(one) for one in found])
        return
    rows = table("TIME", "KIND", "SUBJECT", "OUTCOME", "REASON")
    for one in found:
        rows.add_row(*_cells(one))
    out().print(rows)


def _cells(one: pb.Explanation) -> tuple[str, ...]:
    clock = datetime.fromtimestamp(one.time).strftime("%H:%M:%S")
    return (clock, one.kind, one.subject, one.outcome, one.reason)
