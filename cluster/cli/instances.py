"""tandem migrate, drain, cordon, uncordon, role: what may be done with one request or one instance."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from cluster import control_pb2 as pb
from cluster.cli.connect import control
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import (
    ControlAddress,
    ControlToken,
    Format,
    Output,
    Timeout,
    root,
    seconds,
)
from cluster.cli.output import messages, out, plain, print_data
from cluster.cli.progress import Steps
from cluster.cli.waiting import Watch
from cluster.control_client import ControlClient
from cluster.units import counted
from migration.moved import COMMITTED

POLL = 0.2
GONE = "see `tandem events`"

InstanceName = Annotated[str, typer.Argument(metavar="INSTANCE", help="The instance's name.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Return when it is done.")]
Deadline = Annotated[
    float,
    typer.Option(
        "--deadline",
        metavar="DURATION",
        parser=seconds,
        help="How long requests may take to leave; default: control.drain_timeout.",
        show_default=False,
    ),
]


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


def migrate(
    context: typer.Context,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, or the client's x-request-id.")],
    to: Annotated[str, typer.Option("--to", metavar="INSTANCE", help="Where it shall run.")],
    wait: WaitFlag = False,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Move a running request to another instance; its client notices nothing."""
    with control(context, address, token) as client:
        if wait:
            with Steps(messages(quiet=root(context).quiet)).step(f"moving {request} to {to}"):
                moved = client.migrate(request, to, wait=True, within=timeout)
        else:
            moved = client.migrate(request, to, wait=False)
    if wait and moved.outcome != COMMITTED:
        why = f"{moved.request_id} stays on {moved.source}: {moved.detail}"
        raise Failure(Exit.FAILED, "aborted", why, "it goes on there; try again, or elsewhere")
    if output.is_data:
        print_data(output, "MigrationList", [plain(moved)])
    elif wait:
        out().print(
            f"{moved.request_id} moved from {moved.source} to {moved.destination}: {moved.stages} stages, "
            f"{moved.bytes} bytes, {1000 * moved.downtime:.1f} ms without a token"
        )
    else:
        out().print(f"{moved.request_id} moves from {moved.source} to {moved.destination}")


def cordon(
    context: typer.Context,
    instance: InstanceName,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Place nothing more on an instance; what runs there goes on."""
    with control(context, address, token) as client:
        _tell(client.cordon(instance), output, "{name} is cordoned")


def uncordon(
    context: typer.Context,
    instance: InstanceName,
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Let a cordoned or drained instance take requests again."""
    with control(context, address, token) as client:
        _tell(client.cordon(instance, on=False), output, "{name} takes requests again")


def drain(
    context: typer.Context,
    instance: InstanceName,
    deadline: Deadline = "0s",  # type: ignore[assignment]
    wait: WaitFlag = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Cordon an instance and move its requests to others; what cannot move finishes there."""
    with control(context, address, token) as client:
        told = client.drain(instance, deadline)
        if wait:
            told = _watch(context, client, told, f"draining {instance}", timeout)
            left = told.status.running + told.status.waiting
            if left:
                message = f"{instance} still has {counted(left, 'request')}: what is left goes on there"
                raise Failure(Exit.TIMEOUT, "timeout", message, "drain it again with a longer --deadline")
        _tell(told, output, "{name} is drained" if wait else "{name} is being drained")


def role(
    context: typer.Context,
    instance: InstanceName,
    to: Annotated[Role, typer.Argument(metavar="ROLE", help="prefill or decode.")],
    deadline: Deadline = "0s",  # type: ignore[assignment]
    wait: WaitFlag = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]
    address: ControlAddress = None,
    token: ControlToken = None,
    output: Output = Format.TABLE,
) -> None:
    """Drain an instance and have it go on in another role, without loading its model again."""
    with control(context, address, token) as client:
        told = client.change_role(instance, to.value, deadline)
        if wait:
            told = _watch(context, client, told, f"{instance} becomes a {to.value} instance", timeout)
            if told.role != to.value:
                events = [event for event in client.events() if event.subject == instance]
                why = next((one.reason for one in reversed(events) if one.kind == "role_failed"), GONE)
                raise Failure(Exit.FAILED, "role_failed", f"{instance}: {why}", "try a longer --deadline")
        already = told.role == to.value
        _tell(told, output, f"{{name}} {'is' if already else 'will be'} a {to.value} instance")


def _watch(
    context: typer.Context, client: ControlClient, told: pb.Instance, title: str, timeout: float
) -> pb.Instance:
    """The instance when it is not draining any more. Raises Failure when time is up, or it is gone.

    A controller that is started again takes its instances up one by one, so one that it lacks may yet come.
    """
    console = messages(quiet=root(context).quiet)
    most = told.status.running + told.status.waiting
    end = time.monotonic() + timeout

    def settled(advance: Callable[[int, int], None]) -> pb.Instance:
        now, first, again, watch = told, 0, False, Watch(client)
        while True:
            status = watch.look()
            first = first or status.controller_pid
            again = again or not status.pools or status.controller_pid != first
            seen = next((one for one in status.instances if one.name == told.name), None)
            if seen is None and not again:
                raise Failure(Exit.FAILED, "gone", f"{told.name} ended meanwhile", GONE)
            if seen is not None and seen.state != "draining":
                return seen
            now = seen or now
            if time.monotonic() > end:
                left = now.status.running + now.status.waiting
                message = f"{told.name} still has {counted(left, 'request')} after {timeout:g} s"
                raise Failure(Exit.TIMEOUT, "timeout", message, "it goes on; see `tandem get instances`")
            advance(max(0, most - now.status.running - now.status.waiting), max(1, most))
            time.sleep(POLL)

    with Steps(console).step(title) as advance:
        return settled(advance)


def _tell(told: pb.Instance, output: Format, text: str) -> None:
    if output.is_data:
        print_data(output, "InstanceList", [plain(told)])
    else:
        out().print(text.format(name=told.name))
