"""tandem rebalance: have crowded instances give requests to roomy ones now, not at the next look."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.listing import milliseconds
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, Timeout, root
from cluster.cli.output import messages, out, plain, print_data, table
from cluster.cli.progress import Steps


def command(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move, and why.")] = False,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Move one request from each crowded instance to a roomy one, as the scheduler does by itself.

    Who is crowded and who has room is said by scheduler.crowded_below and scheduler.roomy_above.
    """
    with control(context, address, token) as client:
        if dry_run:
            reply = client.rebalance(dry_run=True)
        else:
            with Steps(messages(quiet=root(context).quiet)).step("moving requests"):
                reply = client.rebalance(within=timeout)
    if output.is_data:
        print_data(output, "MigrationList", [plain(one) for one in reply.moves])
    elif reply.moves:
        rows = table("REQUEST", "FROM", "TO", "DOWNTIME", "OUTCOME", "REASON")
        for one in reply.moves:
            rows.add_row(*_cells(one))
        out().print(rows)
    else:
        out().print(f"nothing {'would move' if dry_run else 'moved'}: {reply.reason}")


def _cells(one: pb.Migration) -> tuple[str, ...]:
    downtime = milliseconds(one.downtime) if one.outcome else "-"
    why = f"{one.reason}: {one.detail}" if one.detail else one.reason
    return (one.request_id, one.source, one.destination, downtime, one.outcome or "planned", why)
