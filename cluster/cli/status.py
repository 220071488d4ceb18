"""tandem status and tandem top: model, pools, instances and gateways on one screen, once or live."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.live import Live

from cluster.cli.connect import control
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, seconds
from cluster.cli.output import out, plain, print_data
from cluster.cli.screen import screen

REFRESH = 1.0

Interval = Annotated[
    float, typer.Option("--interval", metavar="DURATION", parser=seconds, help="Time between two looks.")
]


def command(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the cluster: its model, pools, instances and gateways."""
    _show(context, address, token, output, REFRESH if watch else None)


def top(
    context: typer.Context,
    interval: Interval = "1s",  # type: ignore[assignment]
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the cluster as it is now, again and again until Ctrl-C; plain screens when piped."""
    _show(context, address, token, output, max(0.1, interval))


def _show(
    context: typer.Context, address: str | None, token: str | None, output: Format, interval: float | None
) -> None:
    console = out()
    with control(context, address, token) as client:
        if interval is not None and output is Format.TABLE and console.is_terminal:
            with Live(screen(client.status()), console=console, auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(interval)
                    live.update(screen(client.status()), refresh=True)
        while True:
            if output.is_data:
                print_data(output, "ClusterStatus", [plain(client.status())], again=interval is not None)
            else:
                console.print(screen(client.status()))
            sys.stdout.flush()
            if interval is None:
                return
            time.sleep(interval)
