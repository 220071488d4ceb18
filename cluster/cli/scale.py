"""tandem scale: how many instances a pool has, within which bounds, and who says so."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ControlAddress, ControlToken, Format, Output, Timeout, root
from cluster.cli.output import messages, out, plain, print_data
from cluster.cli.progress import Steps
from cluster.cli.waiting import Watch
from cluster.control_client import ControlClient
from cluster.units import counted

POLL = 0.25


class PoolName(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


def command(
    context: typer.Context,
    pool: Annotated[PoolName, typer.Argument(help="The pool.")],
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=0, help="How many instances; ends autoscaling.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let the controller set the number.")] = False,
    least: Annotated[int | None, typer.Option("--min", min=0, help="The fewest it may have.")] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, help="The most it may have.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are ready.")] = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Set the number of instances of a pool, or its bounds, or give it back to the controller.

    Instances that go finish their requests first. What is out of bounds is refused with exit code 6.
    """
    if auto and replicas is not None:
        raise Failure(Exit.USAGE, "usage", "--auto and --replicas exclude each other", "give one of them")
    if replicas is None and least is None and most is None and not auto:
        raise Failure(Exit.USAGE, "usage", "nothing to change", "give --replicas, --auto, --min or --max")
    with control(context, address, token) as client:
        reply = client.scale(pool.value, replicas, least=least, most=most, automatic=auto, dry_run=dry_run)
        if wait and not dry_run:
            steps = Steps(messages(quiet=root(context).quiet))
            _wait(client, pool.value, reply, timeout, steps)
    if reply.autoscale_ended:
        text = (
            f"{pool.value} is no longer sized by the controller; `tandem scale {pool.value} --auto` undoes it"
        )
        messages(quiet=root(context).quiet).print(text)
    if output.is_data:
        print_data(output, "ScaleResult", [{"pool": pool.value, "dry_run": dry_run} | plain(reply)])
        return
    bounds = least is not None or most is not None
    out().print(_said(pool.value, reply, "would go" if dry_run else "goes", bounds=bounds))


def _said(pool: str, reply: pb.ScaleReply, verb: str, *, bounds: bool) -> str:
    said = f"{pool} {verb} from {reply.previous} to {reply.target}"
    if reply.previous == reply.target:
        said = f"{pool} stays at {reply.target}"
    if bounds and not reply.autoscale:
        said += f"; it may have {reply.least} to {reply.most} instances"
    if reply.autoscale:
        said += f"; the controller sizes it, from {reply.least} to {reply.most} instances"
    return said


def _wait(client: ControlClient, pool: str, reply: pb.ScaleReply, timeout: float, steps: Steps) -> None:
    """Until as many are ready as shall be, and nobody comes or goes. Raises Failure when time is up."""
    target, end = reply.target, time.monotonic() + timeout
    coming = target >= reply.previous
    found, watch = pb.Pool(name=pool), Watch(client)
    with steps.step(f"{pool} goes to {counted(target, 'instance')}") as advance:
        while True:
            seen = {one.name: one for one in watch.look().pools}
            found = seen.get(pool, found)
            if seen and found.ready == target and not found.starting and not found.draining:
                return
            if time.monotonic() > end:
                message = f"{pool} has {found.ready} of {target} instances ready after {timeout:g} s"
                raise Failure(Exit.TIMEOUT, "timeout", message, "see `tandem status` and `tandem events`")
            most = max(1, abs(target - reply.previous))
            left = max(0, target - found.ready) if coming else found.draining
            advance(max(0, most - left), most)
            time.sleep(POLL)
