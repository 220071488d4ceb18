"""tandem restart: replace instances one after the other, without losing a request."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

import typer

from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, Timeout, confirm, root
from cluster.cli.output import messages, out, print_data
from cluster.cli.progress import Advance, Steps
from cluster.cli.waiting import Watch
from cluster.control_client import ControlClient
from cluster.units import counted
from engine.errors import Unreachable

POLL = 0.25
ALL = "all"
CONTROLLER = "controller"


def command(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(metavar="POOL|INSTANCE|controller|all", help="What to replace; all: both pools."),
    ] = ALL,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when all are replaced.")] = True,
    timeout: Timeout = "30m",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replaced.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Replace instances one after the other: a new one is ready before the old one is drained.

    `controller` ends the controller's process: Serve starts another, of the version that is installed now,
    which adopts the instances and replaces those of another version.
    """
    with control(context, address, token) as client:
        if what == CONTROLLER:
            _controller(context, client, timeout, dry_run=dry_run, output=output)
            return
        names = client.restart(what, dry_run=True)
        if names and not dry_run:
            confirm(context, f"Replace {counted(len(names), 'instance')}, one after the other?")
            after = max((event.id for event in client.events()), default=0)
            client.restart(what)
            if wait:
                with Steps(messages(quiet=root(context).quiet)).step(
                    f"replacing {', '.join(names)}"
                ) as advance:
                    watch(client, names, after, timeout, advance)
    if output.is_data:
        print_data(
            output,
            "RestartResult",
            [{"instances": names, "dry_run": dry_run, "replaced": bool(names) and wait and not dry_run}],
        )
    elif not names:
        where = "no pool has instances" if what == ALL else f"pool {what} has no instances"
        out().print(f"{where}, nothing to replace")
    else:
        one = len(names) == 1
        verb = "would be" if dry_run else ("is" if one else "are") if wait else "will be"
        out().print(f"{', '.join(names)} {verb} replaced")


def _controller(
    context: typer.Context, client: ControlClient, timeout: float, *, dry_run: bool, output: Format
) -> None:
    """Ends the controller's process and waits until Serve has started another one."""
    before = client.status().controller_pid
    client.restart(CONTROLLER, dry_run=dry_run)
    after, end, seen = before, time.monotonic() + timeout, Watch(client)
    if not dry_run:
        with Steps(messages(quiet=root(context).quiet)).step("waiting for another controller") as advance:
            while after == before:
                advance(0, 1)
                if time.monotonic() > end:
                    raise Failure(Exit.TIMEOUT, "timeout", f"no other controller after {timeout:g} s")
                time.sleep(POLL)
                status = seen.look()
                after = status.controller_pid if status.pools else before
    if output.is_data:
        print_data(output, "RestartResult", [{"instances": [], "dry_run": dry_run, "replaced": not dry_run}])
    else:
        out().print("the controller would begin anew" if dry_run else "another controller is there")


def watch(client: ControlClient, names: list[str], after: int, timeout: float, advance: Advance) -> None:
    """Until none of the instances is there and the pools are at their targets. Raises Failure.

    A controller that is started again goes on with it; its events count from 1.
    """
    end, controller, left, seen = time.monotonic() + timeout, 0, names, Watch(client)
    while True:
        status = seen.look()
        if status.pools:
            left = [one.name for one in status.instances if one.name in names]
            advance(len(names) - len(left), len(names))
            if not left and all(pool.ready == pool.target and not pool.starting for pool in status.pools):
                return
            controller = controller or status.controller_pid
            _require_progress(client, after if status.controller_pid == controller else 0)
        if time.monotonic() > end:
            message = f"{', '.join(left) or 'an instance'} not replaced after {timeout:g} s"
            raise Failure(Exit.TIMEOUT, "timeout", message, "it goes on; see `tandem status`")
        time.sleep(POLL)


def _require_progress(client: ControlClient, after: int) -> None:
    """Raises Failure where the controller has said, since the event `after`, that it gives one up."""
    with suppress(Unreachable):
        stuck = [event.reason for event in client.events(after=after) if event.kind == "unreplaced"]
        if stuck:
            raise Failure(Exit.FAILED, "not_replaced", stuck[-1], "see `tandem events`")
