"""tandem trace: where the time of requests went, as a file that trace viewers open."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, root, writable
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.trace_file import trace_file
from cluster.units import counted

commands = typer.Typer(no_args_is_help=True, help="Where the time of requests went, for trace viewers.")

LATEST = 200


@commands.callback()
def _group() -> None:
    """Keeps `export` a verb of its own as long as it is the only one."""


@commands.command()
def export(
    context: typer.Context,
    request: Annotated[
        str | None,
        typer.Argument(metavar="REQUEST", help="Its id, or the client's x-request-id. Default: all."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", callback=writable, help="Write it there, not on stdout."
        ),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="The latest so many requests.")] = LATEST,
    address: ControlAddress = None,
    token: ControlToken = None,
) -> None:
    """Write the timelines of requests that run or ended lately, and the controller's events meanwhile.

    The format is Chrome's trace format (JSON): open the file at ui.perfetto.dev or chrome://tracing.
    """
    console = messages(quiet=root(context).quiet)
    what = f"the timeline of {request}" if request else f"the timelines of up to {counted(most, 'request')}"
    with control(context, address, token) as client, Steps(console).step(f"asking for {what}"):
        found = client.timelines(request or "", most)
        events = list(client.events())
    if request is not None and not found:
        message = f"no request {request!r} runs or is remembered"
        raise Failure(Exit.NOT_FOUND, "not_found", message, "see `tandem get requests`")
    text = json.dumps(trace_file(found, events), ensure_ascii=False) + "\n"
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(Exit.USAGE, "usage", f"{file}: cannot be written: {error.strerror}") from None
    console.print(f"{counted(len(found), 'request')}: open {file} at https://ui.perfetto.dev")
