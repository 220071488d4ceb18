"""tandem status: model, pools, instances and gateways on one screen."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.listing import state as shown_state
from cluster.cli.options import ControlAddress, ControlToken, Format, Output
from cluster.cli.output import out, plain, print_json, table

REFRESH = 1.0


def command(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the cluster: its model, pools, instances and gateways."""
    with control(context, address, token) as client:
        console = out()
        if watch and output is Format.TABLE and console.is_terminal:
            with Live(screen(client.status()), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(REFRESH)
                    live.update(screen(client.status()), refresh=True)
        while True:
            if output is Format.JSON:
                print_json("ClusterStatus", [plain(client.status())])
            else:
                console.print(screen(client.status()))
            sys.stdout.flush()
            if not watch:
                return
            time.sleep(REFRESH)


def screen(status: pb.ClusterStatus) -> RenderableType:
    state = "ready" if status.ready else "not ready"
    head = (
        f"tandem {status.version} · {status.model.name} · {status.model.dtype} · {state} · "
        f"up {duration(status.uptime)}"
    )
    pools = table("POOL", "TARGET", "READY", "STARTING", "DRAINING")
    for pool in status.pools:
        pools.add_row(pool.name, str(pool.target), str(pool.ready), str(pool.starting), str(pool.draining))
    instances = table("INSTANCE", "ROLE", "STATE", "PID", "RUNNING", "WAITING", "KV USED", "TOKENS OUT")
    for one in status.instances:
        live = one.status
        used = f"{100 * live.blocks_used / live.blocks_total:.0f} %" if live.blocks_total else "-"
        instances.add_row(
            one.name, one.role, shown_state(one), str(one.pid or "-"),
            str(live.running), str(live.waiting), used, str(live.output_tokens),
        )  # fmt: skip
    gateways = table("GATEWAY", "ADDRESS")
    for gateway in status.gateways:
        gateways.add_row(gateway.name, gateway.url)
    return Group(head, "", pools, "", instances, "", gateways)


def duration(seconds: float) -> str:
    """A rough span for people: 42 s, 5 m 3 s, 2 h 10 m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"
