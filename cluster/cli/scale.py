"""tandem scale: set how many instances a pool has."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, Timeout
from cluster.cli.output import out, print_json
from cluster.control_client import ControlClient

POLL = 0.25


class PoolName(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


def command(
    context: typer.Context,
    pool: Annotated[PoolName, typer.Argument(help="The pool.")],
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="How many instances.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are ready.")] = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Set the number of instances of a pool. Instances that go finish their requests first."""
    with control(context, address, token) as client:
        reply = client.scale(pool.value, replicas, dry_run=dry_run)
        if wait and not dry_run:
            _wait(client, pool.value, reply.target, timeout)
    if output is Format.JSON:
        change = {"pool": pool.value, "previous": reply.previous, "target": reply.target, "dry_run": dry_run}
        print_json("ScaleResult", [change])
        return
    verb = "would go" if dry_run else "goes"
    if reply.previous == reply.target:
        out().print(f"{pool.value} stays at {reply.target}")
    else:
        out().print(f"{pool.value} {verb} from {reply.previous} to {reply.target}")


def _wait(client: ControlClient, pool: str, target: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        found = next(one for one in client.status().pools if one.name == pool)
        if found.ready == target and not found.starting and not found.draining:
            return
        if time.monotonic() > end:
            message = f"{pool} has {found.ready} of {target} instances ready after {timeout:g} s"
            raise Failure(Exit.TIMEOUT, "timeout", message, "see `tandem status` and `tandem events`")
        time.sleep(POLL)
